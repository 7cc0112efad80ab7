"""Products of a few rows against float64, whatever their sizes."""

import pytest
import torch
from torch import Tensor

from engine.elementwise import GELU_TANH, SILU
from engine.operations import Kind
from engine.recorder import Recorder

# Inputs around the length of a vector, outputs around a task's tile.
SIZES = [(1, 1), (31, 23), (32, 24), (33, 25), (64, 7), (96, 50), (200, 48), (768, 97)]
# As many as pass at once, and some left over.
ROWS = [*range(1, 17), 21]


def normal(seed: int, *shape: int) -> Tensor:
    numbers = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=numbers).bfloat16()


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    y = torch.full((len(x), len(weight)), torch.nan, dtype=torch.bfloat16)
    sizes = x.shape[1], len(weight)
    Recorder().do(Kind.LINEAR, len(x), (x, weight, bias, y), sizes)
    return y


def gated(x: Tensor, gate: Tensor, up: Tensor, curve: int) -> Tensor:
    y = torch.full((len(x), len(gate)), torch.nan, dtype=torch.bfloat16)
    sizes = x.shape[1], len(gate), curve
    Recorder().do(Kind.GATED_LINEAR, len(x), (x, gate, up, y), sizes)
    return y


def assert_rounded(found: Tensor, exact: Tensor) -> None:
    """As near as bfloat16 comes, after sums in float32."""
    torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=2e-3)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("inputs", "outputs"), SIZES)
def test_product_is_that_of_float64(rows: int, inputs: int, outputs: int) -> None:
    """
    Whatever the sizes, an answer is the exact product, rounded once.
    """
    x, weight = normal(1, rows, inputs), normal(2, outputs, inputs)
    bias = normal(3, outputs)

    found = linear(x, weight, bias)

    assert_rounded(found, x.double() @ weight.double().T + bias.double())


@pytest.mark.parametrize("curve", [SILU, GELU_TANH])
@pytest.mark.parametrize("rows", [1, 3, 16])
def test_gated_product_is_that_of_float64(rows: int, curve: int) -> None:
    """
    Gate and up together are what torch computes of them one after the other.
    """
    x, gate, up = normal(1, rows, 72), normal(2, 53, 72), normal(3, 53, 72)

    found = gated(x, gate, up, curve)

    before = x.double() @ gate.double().T
    act = (
        torch.nn.functional.silu(before)
        if curve == SILU
        else torch.nn.functional.gelu(before, approximate="tanh")
    )
    assert_rounded(found, act * (x.double() @ up.double().T))


def test_activation_of_great_numbers_is_finite() -> None:
    """
    Where a sigmoid's exponential would leave float32, the answer is the limit.
    """
    x = torch.tensor([[1024.0]], dtype=torch.bfloat16)
    gate = torch.tensor([[1.0], [-1.0]], dtype=torch.bfloat16)
    up = torch.ones(2, 1, dtype=torch.bfloat16)

    [answer] = gated(x, gate, up, SILU).tolist()

    assert answer[0] == 2**20
    assert abs(answer[1]) < 1e-30


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_broken_row_spoils_no_other(broken: float) -> None:
    """
    One sequence's NaN or infinity stays in its own row.
    """
    x, weight = normal(1, 9, 40), normal(2, 30, 40)
    x[4, 39] = broken

    found = linear(x, weight, torch.zeros(30, dtype=torch.bfloat16))

    assert not found[4].isfinite().any()
    assert found[[0, 1, 2, 3, 5, 6, 7, 8]].isfinite().all()


@pytest.mark.parametrize("inputs", [300, 2100])
def test_a_row_does_not_depend_on_its_company(inputs: int) -> None:
    """
    A row's answer is the same alone and among others, however many there are.
    """
    x, weight, bias = normal(1, 16, inputs), normal(2, 50, inputs), normal(3, 50)

    together = linear(x, weight, bias)

    for row in range(16):
        alone = linear(x[row : row + 1], weight, bias)
        assert torch.equal(alone[0], together[row])
        assert torch.equal(linear(x[:row], weight, bias), together[:row])
