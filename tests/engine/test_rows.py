"""One pass over rows against what it stands for in float64."""

import pytest
import torch
from torch import Tensor

from engine.elementwise import GELU_TANH, SILU
from engine.operations import Kind
from engine.recorder import Recorder


def normal(seed: int, *shape: int) -> Tensor:
    numbers = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=numbers).bfloat16()


def computed(
    kind: Kind, tensors: list[Tensor], *sizes: int, constants: tuple[float, ...] = ()
) -> Tensor:
    """What an operation on rows answers."""
    y = torch.full_like(tensors[0], torch.nan)
    Recorder().do(kind, len(y), (*tensors, y), sizes, constants)
    return y


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (1, 768), (3, 17), (40, 96), (300, 33)])
def test_normalisation_is_that_of_float64(
    offset: float, shape: tuple[int, int]
) -> None:
    """
    Every row by its own root mean square, times the weights; Gemma's count from one.
    """
    x, weight = normal(1, *shape), normal(2, shape[1])

    y = computed(Kind.NORMALIZE, [x, weight], shape[1], constants=(1e-5, offset))

    mean = x.double().square().mean(-1, keepdim=True)
    exact = x.double() / (mean + 1e-5).sqrt() * (weight.double() + offset)
    torch.testing.assert_close(y.double(), exact, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize(
    ("curve", "approximate"), [(SILU, None), (GELU_TANH, "tanh")], ids=["silu", "gelu"]
)
def test_gate_is_that_of_float64(curve: int, approximate: str | None) -> None:
    """
    activation(gate) * up, rounded once.
    """
    gate, up = normal(1, 19, 333) * 4, normal(2, 19, 333)

    y = computed(Kind.GATE, [gate, up], 333, curve)

    functional = torch.nn.functional
    exact = (
        functional.gelu(gate.double(), approximate=approximate)
        if approximate
        else functional.silu(gate.double())
    )
    torch.testing.assert_close(y.double(), exact * up.double(), rtol=2**-8, atol=1e-6)


def test_sum_is_that_of_torch() -> None:
    """
    The sum of two activations, to the bit.
    """
    a, b = normal(1, 7, 50), normal(2, 7, 50)

    y = computed(Kind.ADD, [a, b], 50)

    assert torch.equal(y, a + b)


@pytest.mark.parametrize("heads", [1, 5])
@pytest.mark.parametrize("dim", [2, 64, 80])
def test_rotation_is_that_of_float64(heads: int, dim: int) -> None:
    """
    Both halves of each head are rotated by their token's angles.
    """
    x, cos, sin = normal(1, 6, heads, dim), normal(2, 6, dim), normal(3, 6, dim)

    y = computed(Kind.ROTATE, [x, cos, sin], heads, dim)

    first, second = x.double().chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    exact = x.double() * cos.double()[:, None] + turned * sin.double()[:, None]
    torch.testing.assert_close(y.double(), exact, rtol=2**-8, atol=1e-2)
