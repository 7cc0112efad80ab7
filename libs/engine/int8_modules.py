"""Stand-ins over int8 weights: few rows read them as they lie, many as bfloat16 made anew.

What takes the place of what is decided in `engine.modules`.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear as linear_of_many

from engine.packing import linear_of_packed, packs
from engine.program import Kind
from engine.quantization import QuantizedLinear
from engine.recorder import Recorder
from engine.token_wise import TokenWise


class Int8Linear(TokenWise):
    """`QuantizedLinear`; for few rows each weight is read once."""

    def __init__(self, of: QuantizedLinear, few_rows: int, recorder: Recorder) -> None:
        super().__init__(recorder)
        self._few_rows = few_rows
        self.weight, self.weight_scale, self.bias = of.weight, of.weight_scale, of.bias
        self._outputs, self._inputs = of.weight.shape
        self._offsets = of.bias
        if of.bias is None:
            self._offsets = torch.zeros(self._outputs, dtype=torch.bfloat16)

    def compute(self, x: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs]."""
        x, num_rows = x.contiguous(), x.numel() // self._inputs
        if num_rows > self._few_rows:
            weight = _widened(self, self._recorder)
            if not packs(self._inputs):
                return linear_of_many(x, weight, self.bias)
            return linear_of_packed(x, weight, self._offsets, self._recorder)
        y = x.new_empty((*x.shape[:-1], self._outputs))
        operands = x, self.weight, self.weight_scale, self._offsets, y
        sizes = self._inputs, self._outputs
        self._recorder.do(Kind.LINEAR_INT8, num_rows, operands, sizes)
        return y


class Int8GatedMLP(TokenWise):
    """`engine.modules.GatedMLP` over int8 weights."""

    def __init__(self, of: Any, curve: int, few_rows: int, recorder: Recorder) -> None:
        super().__init__(recorder)
        self._few_rows = few_rows
        self.gate_proj, self.up_proj = of.gate_proj, of.up_proj
        self.down_proj = of.down_proj
        self._curve = curve

    def compute(self, x: Tensor) -> Tensor:
        """[..., hidden] to the same."""
        gate, up = self.gate_proj, self.up_proj
        outputs, inputs = gate.weight.shape
        num_rows = x.numel() // inputs
        x = x.contiguous()
        y = x.new_empty((*x.shape[:-1], outputs))
        if num_rows <= self._few_rows:
            weights = gate.weight, gate.weight_scale, up.weight, up.weight_scale
            sizes = inputs, outputs, self._curve
            self._recorder.do(Kind.GATED_LINEAR_INT8, num_rows, (x, *weights, y), sizes)
        else:
            operands = gate(x), up(x), y
            self._recorder.do(Kind.GATE, num_rows, operands, (outputs, self._curve))
        answer: Tensor = self.down_proj(y)
        return answer


def _widened(layer: Int8Linear, recorder: Recorder) -> Tensor:
    """The weights in bfloat16, for one product."""
    outputs, inputs = layer.weight.shape
    whole = torch.empty(outputs, inputs, dtype=torch.bfloat16)
    operands = layer.weight, layer.weight_scale, whole
    recorder.do(Kind.DEQUANTIZE, outputs, operands, (inputs,))
    return whole
