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
from engine.operations import Kind
from engine.packing import packed, packs
from engine.recorder import Recorder
from engine.rotary import replace_rotary
from engine.stand_ins import is_bfloat16, replace
from engine.token_wise import TokenWise
from engine.weights import Weights, weights_of

# Up to so many rows a product waits for weights to come from memory; with more of them
# it is arithmetic that counts, and a library that lays the weights out for it.
FEW_ROWS = 32


class Linear(TokenWise):
    """A linear layer; for few rows each weight is read once, as it lies."""

    def __init__(self, of: Any, weights: Weights, recorder: Recorder) -> None:
        super().__init__(recorder)
        for name, parameter in of.named_parameters():
            self.register_parameter(name, parameter)
        self.weights = weights
        self.bias: Tensor | None = of.bias
        self._offsets: Tensor = of.bias
        if of.bias is None:  # no weight of the model
            self._offsets = torch.zeros(weights.outputs, dtype=torch.bfloat16)
        # Of many rows, over a copy in another layout, where there is one.
        self.many: Callable[[Tensor], Tensor] | None = None

    def compute(self, x: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs]."""
        weights, form, recorder = self.weights, self.weights.form, self._recorder
        x, num_rows = x.contiguous(), x.numel() // weights.inputs
        y = x.new_empty((*x.shape[:-1], weights.outputs))
        tensors, kind = weights.tensors, form.linear
        if num_rows > FEW_ROWS:
            if self.many is not None:
                return self.many(x)
            tensors, kind = (weights.of_many(recorder),), form.linear_packed
            if not packs(weights.inputs):
                return linear_of_many(x, *tensors, self.bias)
            x = packed(x, recorder)
        sizes = weights.inputs, weights.outputs, *weights.extra_sizes
        recorder.do(kind, num_rows, (x, *tensors, self._offsets, y), sizes)
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

    def __init__(
        self, of: Any, weights: tuple[Weights, Weights], curve: int, recorder: Recorder
    ) -> None:
        """`weights` are those of gate and up."""
        super().__init__(recorder)
        self.gate_proj, self.up_proj = of.gate_proj, of.up_proj
        self.down_proj = of.down_proj
        self._weights = weights
        self._curve = curve

    def compute(self, x: Tensor) -> Tensor:
        """[..., hidden] to the same."""
        x, (gate, up), recorder = x.contiguous(), self._weights, self._recorder
        num_rows = x.numel() // gate.inputs
        y = x.new_empty((*x.shape[:-1], gate.outputs))
        sizes = gate.inputs, gate.outputs, *gate.extra_sizes, *up.extra_sizes
        tensors, kind = (*gate.tensors, *up.tensors), gate.form.gated
        if num_rows > FEW_ROWS:
            if packs(gate.inputs):
                x, kind = packed(x, recorder), gate.form.gated_packed
                tensors = gate.of_many(recorder), up.of_many(recorder)
            else:
                x, tensors, kind = self.gate_proj(x), (self.up_proj(x),), Kind.GATE
                sizes = (gate.outputs,)
        recorder.do(kind, num_rows, (x, *tensors, y), (*sizes, self._curve))
        answer: Tensor = self.down_proj(y)
        return answer


_OURS = Linear | RMSNorm | GatedMLP


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
    if weights := weights_of(module):
        return [Linear(module, weights, recorder)]
    if type(module).__name__.endswith("RMSNorm"):
        epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
        parameters = list(module.parameters())
        if epsilon is not None and len(parameters) == 1:
            return [RMSNorm(parameters[0], epsilon, o, recorder) for o in (0.0, 1.0)]
    if both := _gate_and_up(module):
        curves = SILU, GELU_TANH
        return [GatedMLP(module, both, curve, recorder) for curve in curves]
    return []


def _gate_and_up(module: nn.Module) -> tuple[Weights, Weights] | None:
    """Their weights, of one form, if it looks like a gated MLP without biases."""
    names = "gate_proj", "up_proj", "down_proj"
    projections = [getattr(module, name, None) for name in names]
    gate, up, down = map(weights_of, projections)
    plain = all(getattr(projection, "bias", 0) is None for projection in projections)
    if not (gate and up and down and plain) or gate.form is not up.form:
        return None
    return gate, up


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
