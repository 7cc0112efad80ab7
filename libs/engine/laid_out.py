"""Weights laid out once for products of many rows, as a private copy.

oneDNN multiplies many rows over weights in a layout of its own, which it otherwise makes
anew in each product: for 512 rows that is up to an eighth of the time, for 64 a third.
It is used where that beats `engine.panels`. The copy is opaque, so no store can hold it: a
worker that computes prompts makes its own, if there is room for it.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from engine.modules import FEW_ROWS, Linear
from engine.stand_ins import are_equal
from engine.weights import PLAIN

_TYPICAL_ROWS = 512  # oneDNN asks for a number; the layout is the same for others
_TRIAL_ROWS = 2 * FEW_ROWS


def lay_out(model: Any, max_bytes: int) -> int:
    """Give the linear stand-ins of a model such copies, all or none; answers their bytes.

    The last layer has none: only sampled rows reach it, which are few.
    """
    layers = list(_laid_out_ones(model))
    size = sum(_weight(layer).nbytes for layer in layers)
    if size > max_bytes or not _is_worth_it(layers):
        return 0
    for layer in layers:
        layer.many = _Product(layer)
    return size


def _laid_out_ones(model: Any) -> Iterator[Linear]:
    last = model.get_output_embeddings()
    layers = (m for m in model.modules() if isinstance(m, Linear) and m is not last)
    return (layer for layer in layers if layer.weights.form is PLAIN)


def _weight(layer: Linear) -> Tensor:
    return layer.weights.tensors[0]


def _is_worth_it(layers: Iterable[Linear]) -> bool:
    """Whether this build of torch can, and computes the same, for every shape."""
    tried = {_weight(layer).shape: layer for layer in layers}
    return bool(tried) and all(map(_computes_the_same, tried.values()))


def _computes_the_same(layer: Linear) -> bool:
    numbers = torch.Generator().manual_seed(0)
    x = torch.randn((_TRIAL_ROWS, layer.weights.inputs), generator=numbers).bfloat16()
    try:
        found = _Product(layer)(x)
    except (RuntimeError, AttributeError):  # not built with oneDNN, or of other names
        return False
    return are_equal(found, nn.functional.linear(x, _weight(layer), layer.bias))


class _Product:
    """x @ weight.T + bias over the laid out copy of a layer's weight."""

    def __init__(self, layer: Linear) -> None:
        reorder = torch.ops.mkldnn._reorder_linear_weight
        self._weight = reorder(_weight(layer), _TYPICAL_ROWS)
        self._bias = layer.bias

    def __call__(self, x: Tensor) -> Tensor:
        multiply = torch.ops.mkldnn._linear_pointwise
        answer: Tensor = multiply(x, self._weight, self._bias, "none", [], "")
        return answer
