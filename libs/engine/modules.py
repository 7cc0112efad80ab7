"""Modules that stand in for transformers' in a served model, faster and as exact.

They read the same weights where they lie. `speed_up` puts one in place of each module
that it equals, as a trial with random inputs shows; everything else stays as it is. In
bfloat16 only: in float32 a model is transformers' own to the last operation.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear as linear_of_many

from engine.elementwise import GELU_TANH, SILU
from engine.int8_modules import Int8GatedMLP, Int8Linear
from engine.packing import linear_of_packed, packed, packs
from engine.program import Kind
from engine.quantization import QuantizedLinear
from engine.recorder import Recorder
from engine.rotary import replace_rotary
from engine.stand_ins import is_bfloat16, replace
from engine.token_wise import TokenWise

# Up to so many rows a product waits for weights to come from memory; with more of them
# it is arithmetic that counts, and a library that lays the weights out for it.
FEW_ROWS = 32


class Linear(TokenWise):
    """`nn.Linear`; for few rows each weight is read once."""

    def __init__(self, of: nn.Linear, recorder: Recorder) -> None:
        super().__init__(recorder)
        self.weight, self.bias = of.weight, of.bias
        self._outputs, self._inputs = of.weight.shape
        self._offsets = of.bias
        if of.bias is None:
            self._offsets = of.weight.new_zeros(self._outputs)  # no weight of the model
        # Of many rows; over a copy in another layout, where there is one.
        self.many: Callable[[Tensor], Tensor] = partial(
            linear_of_many, weight=of.weight, bias=of.bias
        )

    def compute(self, x: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs]."""
        x, num_rows = x.contiguous(), x.numel() // self._inputs
        if num_rows > FEW_ROWS:
            if not packs(self._inputs):
                return self.many(x)
            return linear_of_packed(x, self.weight, self._offsets, self._recorder)
        y = x.new_empty((*x.shape[:-1], self._outputs))
        operands = x, self.weight, self._offsets, y
        sizes = self._inputs, self._outputs
        self._recorder.do(Kind.LINEAR, num_rows, operands, sizes)
        return y


class RMSNorm(TokenWise):
    """Root mean square normalisation in one pass."""

    def __init__(
        self, weight: nn.Parameter, epsilon: float, offset: float, recorder: Recorder
    ) -> None:
        super().__init__(recorder)
        self.weight = weight
        self._epsilon, self._offset = epsilon, offset

    def compute(self, x: Tensor) -> Tensor:
        """[..., dim] to the same."""
        x = x.contiguous()
        y = torch.empty_like(x)
        dim = x.shape[-1]
        operands, constants = (x, self.weight, y), (self._epsilon, self._offset)
        self._recorder.do(Kind.NORMALIZE, x.numel() // dim, operands, (dim,), constants)
        return y


class GatedMLP(TokenWise):
    """down(activation(gate(x)) * up(x)), gate and up side by side."""

    def __init__(self, of: Any, curve: int, recorder: Recorder) -> None:
        super().__init__(recorder)
        self.gate_proj, self.up_proj = of.gate_proj, of.up_proj
        self.down_proj = of.down_proj
        self._curve = curve

    def compute(self, x: Tensor) -> Tensor:
        """[..., hidden] to the same."""
        gate, up = self.gate_proj.weight, self.up_proj.weight
        outputs, inputs = gate.shape
        num_rows = x.numel() // inputs
        x = x.contiguous()
        y = x.new_empty((*x.shape[:-1], outputs))
        if num_rows > FEW_ROWS and not packs(inputs):
            operands = self.gate_proj(x), self.up_proj(x), y
            self._recorder.do(Kind.GATE, num_rows, operands, (outputs, self._curve))
        else:
            kind = Kind.GATED_LINEAR
            if num_rows > FEW_ROWS:
                x, kind = packed(x, self._recorder), Kind.GATED_LINEAR_PACKED
            sizes = inputs, outputs, self._curve
            self._recorder.do(kind, num_rows, (x, gate, up, y), sizes)
        answer: Tensor = self.down_proj(y)
        return answer


_OURS = Linear | RMSNorm | GatedMLP | Int8Linear | Int8GatedMLP


def speed_up(model: nn.Module) -> Recorder:
    """Replace what can be replaced in a bound model of bfloat16, each kind on trial.

    The answer hears what the modules compute.
    """
    recorder = Recorder()
    replace(model, lambda module: _candidates(module, recorder))
    for module in model.modules():
        if is_bfloat16(module):
            replace_rotary(module, partial(_rotated, recorder))
    return recorder


def _candidates(module: nn.Module, recorder: Recorder) -> list[nn.Module]:
    """What might stand in for a module, by its looks."""
    if isinstance(module, _OURS):
        return []
    if type(module) is nn.Linear:
        return [Linear(module, recorder)]
    if isinstance(module, QuantizedLinear):
        return [Int8Linear(module, FEW_ROWS, recorder)]
    if type(module).__name__.endswith("RMSNorm"):
        epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
        parameters = list(module.parameters())
        if epsilon is not None and len(parameters) == 1:
            return [RMSNorm(parameters[0], epsilon, o, recorder) for o in (0.0, 1.0)]
    curves = SILU, GELU_TANH
    projections = _projections(module)
    if projections is nn.Linear:
        return [GatedMLP(module, curve, recorder) for curve in curves]
    if projections is QuantizedLinear:
        return [Int8GatedMLP(module, curve, FEW_ROWS, recorder) for curve in curves]
    return []


def _projections(module: nn.Module) -> type | None:
    """Of what kind the three are, if it looks like a gated MLP without biases."""
    names = "gate_proj", "up_proj", "down_proj"
    found = [getattr(module, name, None) for name in names]
    kinds = {type(projection) for projection in found}
    plain = all(getattr(projection, "bias", 0) is None for projection in found)
    return kinds.pop() if plain and len(kinds) == 1 else None


def _rotated(
    recorder: Recorder, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor]:
    return _rotated_one(recorder, q, cos, sin), _rotated_one(recorder, k, cos, sin)


def _rotated_one(recorder: Recorder, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x is [1, heads, tokens, dim], cos and sin are [1, tokens, dim]."""
    by_token = x.transpose(1, 2).contiguous()
    y = torch.empty_like(by_token)
    tokens, heads, dim = by_token.shape[1:]
    recorder.do(Kind.ROTATE, tokens, (by_token, cos, sin, y), (heads, dim))
    return y.transpose(1, 2)
