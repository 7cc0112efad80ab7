"""One pass over rows against what it stands for in float64."""

import pytest
import torch
from torch import Tensor

from engine import rows
from engine.elementwise import GELU_TANH, SILU


def normal(seed: int, *shape: int) -> Tensor:
    numbers = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=numbers).bfloat16()


@pytest.mark.parametrize("kernel", [rows.normalize, rows.normalize_many])
@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (1, 768), (3, 17), (40, 96)])
def test_normalisation_is_that_of_float64(
    kernel: object, offset: float, shape: tuple[int, int]
) -> None:
    """
    Every row by its own root mean square, times the weights; Gemma's count from one.
    """
    x, weight = normal(1, *shape), normal(2, shape[1])
    y = torch.full_like(x, torch.nan)

    kernel(x.data_ptr(), weight.data_ptr(), y.data_ptr(), shape, 1e-5, offset)

    mean = x.double().square().mean(-1, keepdim=True)
    exact = x.double() / (mean + 1e-5).sqrt() * (weight.double() + offset)
    torch.testing.assert_close(y.double(), exact, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize(
    ("curve", "approximate"), [(SILU, None), (GELU_TANH, "tanh")], ids=["silu", "gelu"]
)
def test_activation_is_that_of_float64(curve: int, approximate: str | None) -> None:
    """
    activation(gate) * up, rounded once.
    """
    gate, up = normal(1, 19, 333) * 4, normal(2, 19, 333)
    y = torch.full_like(gate, torch.nan)

    rows.activate(gate.data_ptr(), up.data_ptr(), y.data_ptr(), (19, 333), curve)

    functional = torch.nn.functional
    exact = (
        functional.gelu(gate.double(), approximate=approximate)
        if approximate
        else functional.silu(gate.double())
    )
    torch.testing.assert_close(y.double(), exact * up.double(), rtol=2**-8, atol=1e-6)
