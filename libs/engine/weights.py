"""Weights of a linear layer as products of ours take them, in whatever form they lie."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from engine.compression import CompressedLinear
from engine.operations import Kind
from engine.quantization import QuantizedLinear
from engine.recorder import Recorder


@dataclass(frozen=True, slots=True)
class Form:
    """The kinds of operation that compute with weights as they lie."""

    linear: Kind  # of few rows
    gated: Kind  # of few rows, with gates and ups
    linear_packed: Kind  # of many
    gated_packed: Kind
    widening: Kind | None = None  # before those of many, to bfloat16


PLAIN = Form(
    Kind.LINEAR, Kind.GATED_LINEAR, Kind.LINEAR_PACKED, Kind.GATED_LINEAR_PACKED
)
INT8 = Form(
    Kind.LINEAR_INT8,
    Kind.GATED_LINEAR_INT8,
    Kind.LINEAR_PACKED,
    Kind.GATED_LINEAR_PACKED,
    Kind.DEQUANTIZE,
)
COMPRESSED = Form(
    Kind.LINEAR_COMPRESSED,
    Kind.GATED_LINEAR_COMPRESSED,
    Kind.LINEAR_COMPRESSED_PACKED,
    Kind.GATED_LINEAR_COMPRESSED_PACKED,
)


@dataclass(frozen=True, slots=True)
class Weights:
    """[outputs, inputs], as operands of their form's operations."""

    form: Form
    tensors: tuple[Tensor, ...]
    inputs: int
    outputs: int
    extra_sizes: tuple[int, ...] = ()  # after inputs and outputs

    def of_many(self, recorder: Recorder) -> Tensor:
        """What a product of many rows reads."""
        if self.form.widening is None:
            return self.tensors[0]
        whole = torch.empty(self.outputs, self.inputs, dtype=torch.bfloat16)
        operands = *self.tensors, whole
        recorder.do(self.form.widening, self.outputs, operands, (self.inputs,))
        return whole


def weights_of(layer: object) -> Weights | None:
    """None where it is no linear layer."""
    if isinstance(layer, CompressedLinear):
        sizes, rows = (layer.in_features, layer.out_features), layer.weight_rows
        return Weights(COMPRESSED, (rows,), *sizes, extra_sizes=(rows.shape[1],))
    if isinstance(layer, QuantizedLinear):
        tensors = layer.weight, layer.weight_scale
        return Weights(INT8, tensors, layer.in_features, layer.out_features)
    if type(layer) is nn.Linear:
        outputs, inputs = layer.weight.shape
        return Weights(PLAIN, (layer.weight,), inputs, outputs)
    return None
