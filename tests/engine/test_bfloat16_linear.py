"""Linear layers of bfloat16 by float32, where a processor has nothing better."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from engine import bfloat16_linear
from engine.bfloat16_linear import quick_linear, widened_linear


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


@pytest.mark.parametrize("rows", [1, 7, 8, 44])
@pytest.mark.parametrize("outputs", [1, 96, 2000])  # the last in several parts
@pytest.mark.parametrize("with_bias", [True, False])
def test_it_is_the_exact_product_rounded_once(
    rows: int, outputs: int, with_bias: bool
) -> None:
    """
    A reference in float64 is off by no more than half of bfloat16's last bit: nothing
    but the answer is rounded, whatever the number of rows and however many parts the
    weights are taken in.
    """
    x, weight = normal(1, rows, 512), normal(outputs, 512, seed=2)
    bias = normal(outputs, seed=3) if with_bias else None

    found = widened_linear(x, weight, bias)

    exact = linear(x.double(), weight.double(), None if bias is None else bias.double())
    assert found.dtype == torch.bfloat16
    assert found.shape == exact.shape
    torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=1e-3)


def test_float32_is_left_as_it_is() -> None:
    """In float32 a model is transformers' own to the last operation."""
    x, weight = normal(44, 64).float(), normal(32, 64, seed=2).float()

    assert torch.equal(widened_linear(x, weight), linear(x, weight))


def test_it_answers_for_torch_where_torch_is_slow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """
    Modules of transformers call torch's own function, and know nothing of another one.

    A processor that multiplies bfloat16 is left to torch.
    """
    computed = []
    monkeypatch.setattr(
        bfloat16_linear, "widened_linear", lambda *args: computed.append(args)
    )
    layer = torch.nn.Linear(8, 8, dtype=torch.bfloat16)

    monkeypatch.setattr(bfloat16_linear, "_is_quick", lambda: True)
    with quick_linear():
        layer(normal(9, 8))
    assert not computed

    monkeypatch.setattr(bfloat16_linear, "_is_quick", lambda: False)
    with quick_linear():
        layer(normal(9, 8))
    assert len(computed) == 1

    layer(normal(9, 8))
    assert len(computed) == 1, "it is asked outside as well"
