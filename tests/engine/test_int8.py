"""Products with int8 weights against float64, whatever their sizes."""

import pytest
import torch
from torch import Tensor

from engine.elementwise import GELU_TANH, SILU
from engine.operations import Kind
from engine.recorder import Recorder

# Inputs around the length of a vector, outputs around a task's tile.
SIZES = [(1, 1), (31, 23), (32, 24), (33, 25), (64, 7), (200, 48), (768, 97)]
ROWS = [1, 2, 3, 4, 7, 8, 16, 33]

Weights = tuple[Tensor, Tensor]  # int8 [outputs, inputs], scales [outputs]


def normal(seed: int, *shape: int) -> Tensor:
    numbers = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=numbers).bfloat16()


def weights(seed: int, outputs: int, inputs: int) -> Weights:
    """All of int8, its least number too, and scales that differ by an order."""
    numbers = torch.Generator().manual_seed(seed)
    shape = outputs, inputs
    weight = torch.randint(-128, 128, shape, dtype=torch.int8, generator=numbers)
    return weight, (torch.rand(outputs, generator=numbers) + 0.1) / 127


def exact(of: Weights) -> Tensor:
    weight, scale = of
    return weight.double() * scale.double()[:, None]


def linear(x: Tensor, of: Weights, bias: Tensor) -> Tensor:
    outputs = len(bias)
    y = torch.full((len(x), outputs), torch.nan, dtype=torch.bfloat16)
    sizes = x.shape[1], outputs
    Recorder().do(Kind.LINEAR_INT8, len(x), (x, *of, bias, y), sizes)
    return y


def gated(x: Tensor, gate: Weights, up: Weights, curve: int) -> Tensor:
    outputs = len(gate[0])
    y = torch.full((len(x), outputs), torch.nan, dtype=torch.bfloat16)
    sizes = x.shape[1], outputs, curve
    Recorder().do(Kind.GATED_LINEAR_INT8, len(x), (x, *gate, *up, y), sizes)
    return y


def assert_rounded(found: Tensor, expected: Tensor) -> None:
    """As near as bfloat16 comes, after sums in float32."""
    torch.testing.assert_close(found.double(), expected, rtol=2**-8, atol=2e-3)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("inputs", "outputs"), SIZES)
def test_product_is_that_of_float64(rows: int, inputs: int, outputs: int) -> None:
    """
    Whatever the sizes, an answer is the product with the scaled weights, rounded once.
    """
    x, of, bias = (
        normal(1, rows, inputs),
        weights(2, outputs, inputs),
        normal(3, outputs),
    )

    found = linear(x, of, bias)

    assert_rounded(found, x.double() @ exact(of).T + bias.double())


@pytest.mark.parametrize("curve", [SILU, GELU_TANH])
@pytest.mark.parametrize("rows", [1, 3, 16])
def test_gated_product_is_that_of_float64(rows: int, curve: int) -> None:
    """
    Gate and up together, each with its scales, are what torch computes of them.
    """
    x, gate, up = normal(1, rows, 72), weights(2, 53, 72), weights(3, 53, 72)

    found = gated(x, gate, up, curve)

    before = x.double() @ exact(gate).T
    act = (
        torch.nn.functional.silu(before)
        if curve == SILU
        else torch.nn.functional.gelu(before, approximate="tanh")
    )
    assert_rounded(found, act * (x.double() @ exact(up).T))


def test_every_integer_is_exact() -> None:
    """
    All 256 numbers come through as they are, each at its own place.
    """
    weight = torch.arange(-128, 128).to(torch.int8)[:, None]
    x, one = torch.ones(1, 1).bfloat16(), torch.ones(256)

    found = linear(x, (weight, one), torch.zeros(256).bfloat16())

    assert found[0].tolist() == list(range(-128, 128))


def test_a_row_does_not_depend_on_its_company() -> None:
    """
    A row's answer is the same alone and among others.
    """
    x, of, bias = normal(1, 16, 300), weights(2, 50, 300), normal(3, 50)

    together = linear(x, of, bias)

    for row in range(16):
        alone = linear(x[row : row + 1], of, bias)
        assert torch.equal(alone[0], together[row])


def test_broken_row_spoils_no_other() -> None:
    """
    One sequence's NaN stays in its own row.
    """
    x, of = normal(1, 9, 40), weights(2, 30, 40)
    x[4, 39] = torch.nan

    found = linear(x, of, torch.zeros(30).bfloat16())

    assert found[4].isnan().all()
    assert found[[0, 1, 2, 3, 5, 6, 7, 8]].isfinite().all()


@pytest.mark.parametrize(("inputs", "outputs"), SIZES)
def test_bfloat16_weights_are_those_of_torch(inputs: int, outputs: int) -> None:
    """
    For many rows weights become, to the bit, what torch makes of them.
    """
    weight, scale = weights(2, outputs, inputs)
    y = torch.full((outputs, inputs), torch.nan, dtype=torch.bfloat16)

    Recorder().do(Kind.DEQUANTIZE, outputs, (weight, scale, y), (inputs,))

    assert torch.equal(y, (weight.float() * scale[:, None]).bfloat16())
