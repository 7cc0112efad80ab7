"""Weights laid out for many rows: the same products, a private copy, all or nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.laid_out import lay_out
from engine.modules import Linear

ROOM = 1 << 30


def engine_of(path: Path, memory_of: Callable[..., Any]) -> Any:
    return memory_of(path, "bfloat16").engine()


def linears(model: Any) -> list[Linear]:
    last = model.get_output_embeddings()
    return [m for m in model.modules() if isinstance(m, Linear) and m is not last]


def test_products_of_many_rows_are_the_same(
    family: Callable[[str], Path], memory_of: Callable[..., Any]
) -> None:
    """
    For every layer, with a bias or without, and for numbers of rows that the layout was
    not made for. On a processor whose bfloat16 oneDNN does not multiply nothing is copied.
    """
    model = engine_of(family("qwen2"), memory_of)._forward._model
    layers = linears(model)
    numbers = torch.Generator().manual_seed(3)

    size = lay_out(model, ROOM)

    can = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert size == (sum(layer.weight.nbytes for layer in layers) if can else 0)
    assert {layer.bias is None for layer in layers} == {True, False}
    for layer in layers:
        for num_rows in (33, 100, 700):
            x = torch.randn((1, num_rows, layer.weight.shape[1]), generator=numbers)
            x = x.bfloat16()
            with torch.inference_mode():
                found = layer(x)
                expected = torch.nn.functional.linear(x, layer.weight, layer.bias)
            torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("max_bytes", [0, 1000])
def test_without_room_nothing_is_copied(
    family: Callable[[str], Path], memory_of: Callable[..., Any], max_bytes: int
) -> None:
    """
    Part of a model laid out would be memory spent for little: it stays as it is.
    """
    model = engine_of(family("llama"), memory_of)._forward._model
    before = [layer.many for layer in linears(model)]

    assert lay_out(model, max_bytes) == 0
    assert [layer.many for layer in linears(model)] == before


def test_a_torch_that_cannot_stays_as_it_is(
    family: Callable[[str], Path],
    memory_of: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """
    Builds without oneDNN, or whose products differ, are served from the shared weights.
    """
    model = engine_of(family("llama"), memory_of)._forward._model
    monkeypatch.setattr("engine.laid_out.are_equal", lambda *_: False)

    assert lay_out(model, ROOM) == 0


def test_float32_is_left_alone(
    family: Callable[[str], Path], memory_of: Callable[..., Any]
) -> None:
    """
    There a model is transformers' own to the last operation.
    """
    engine = memory_of(family("llama"), "float32").engine()

    assert lay_out(engine._forward._model, ROOM) == 0
