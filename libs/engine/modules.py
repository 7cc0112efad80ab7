"""Modules that stand in for transformers' in a served model, faster and as exact.

They read the same weights where they lie. `speed_up` puts one in place of each module
that it equals, as a trial with random inputs shows; everything else stays as it is. In
bfloat16 only: in float32 a model is transformers' own to the last operation.
"""

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear as linear_of_many

from engine import matmul, rows
from engine.elementwise import GELU_TANH, SILU

# Up to so many rows a product waits for weights to come from memory; with more of them
# it is arithmetic that counts, and a library that lays the weights out for it.
FEW_ROWS = 16
# From so many rows on, a pass over them is worth the start of several threads.
MANY_ROWS = 32

_TRIAL_ROWS = (1, 3, FEW_ROWS, MANY_ROWS + 8)
# Of the answer's norm: bfloat16 keeps eight bits, and a module rounds several times.
_TOLERANCE = 0.02


class Linear(nn.Module):
    """`nn.Linear`; for few rows each weight is read once."""

    def __init__(self, of: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = of.weight, of.bias
        self._outputs, self._inputs = of.weight.shape
        self._offsets = of.bias
        if of.bias is None:
            self._offsets = nn.Parameter(of.weight.new_zeros(self._outputs), False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs]."""
        num_rows = x.numel() // self._inputs
        if num_rows > FEW_ROWS:
            return linear_of_many(x, self.weight, self.bias)
        x = x.contiguous()
        y = x.new_empty((*x.shape[:-1], self._outputs))
        matmul.linear(
            x.data_ptr(),
            self.weight.data_ptr(),
            self._offsets.data_ptr(),
            y.data_ptr(),
            (num_rows, self._inputs, self._outputs),
        )
        return y


class RMSNorm(nn.Module):
    """Root mean square normalisation in one pass."""

    def __init__(self, weight: nn.Parameter, epsilon: float, offset: float) -> None:
        super().__init__()
        self.weight = weight
        self._epsilon, self._offset = epsilon, offset

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] to the same."""
        x = x.contiguous()
        y = torch.empty_like(x)
        dim = x.shape[-1]
        num_rows = x.numel() // dim
        kernel = rows.normalize if num_rows < MANY_ROWS else rows.normalize_many
        kernel(
            x.data_ptr(),
            self.weight.data_ptr(),
            y.data_ptr(),
            (num_rows, dim),
            self._epsilon,
            self._offset,
        )
        return y


class GatedMLP(nn.Module):
    """down(activation(gate(x)) * up(x)), gate and up side by side."""

    def __init__(self, of: Any, curve: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = of.gate_proj, of.up_proj
        self.down_proj = of.down_proj
        self._curve = curve

    def forward(self, x: Tensor) -> Tensor:
        """[..., hidden] to the same."""
        gate, up = self.gate_proj.weight, self.up_proj.weight
        outputs, inputs = gate.shape
        num_rows = x.numel() // inputs
        x = x.contiguous()
        y = x.new_empty((*x.shape[:-1], outputs))
        if num_rows <= FEW_ROWS:
            matmul.gated_linear(
                x.data_ptr(),
                (gate.data_ptr(), up.data_ptr()),
                y.data_ptr(),
                (num_rows, inputs, outputs),
                self._curve,
            )
        else:
            gates, ups = linear_of_many(x, gate), linear_of_many(x, up)
            rows.activate(
                gates.data_ptr(),
                ups.data_ptr(),
                y.data_ptr(),
                (num_rows, outputs),
                self._curve,
            )
        answer: Tensor = self.down_proj(y)
        return answer


def speed_up(model: nn.Module) -> None:
    """Replace what can be replaced in a bound model of bfloat16, each kind on trial."""
    _replace_in(model, {})


def _replace_in(parent: nn.Module, tried: dict[Hashable, int | None]) -> None:
    for name, module in list(parent.named_children()):
        candidates = _candidates(module)
        kind = _kind(module)
        if candidates and kind not in tried:
            equal = (i for i, c in enumerate(candidates) if _equals(c, module))
            tried[kind] = next(equal, None)
        winner = tried.get(kind)
        if winner is not None:
            module = candidates[winner].eval()
            setattr(parent, name, module)
        _replace_in(module, tried)


def _kind(module: nn.Module) -> Hashable:
    """Modules of one kind compute the same of weights of the same shape."""
    shapes = tuple((n, p.shape) for n, p in module.named_parameters())
    return type(module), shapes, repr(getattr(module, "act_fn", None))


def _candidates(module: nn.Module) -> list[nn.Module]:
    """What might stand in for a module, by its looks."""
    parameters = list(module.parameters())
    known = isinstance(module, Linear | RMSNorm | GatedMLP)
    if known or not parameters or any(p.dtype != torch.bfloat16 for p in parameters):
        return []
    if type(module) is nn.Linear:
        return [Linear(module)]
    if type(module).__name__.endswith("RMSNorm"):
        epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
        if epsilon is not None and len(parameters) == 1:
            return [RMSNorm(parameters[0], epsilon, offset) for offset in (0.0, 1.0)]
    children = dict(module.named_children())
    if {"gate_proj", "up_proj", "down_proj"} <= children.keys() and all(
        type(children[name]) is nn.Linear and children[name].bias is None
        for name in ("gate_proj", "up_proj", "down_proj")
    ):
        return [GatedMLP(module, curve) for curve in (SILU, GELU_TANH)]
    return []


def _equals(candidate: nn.Module, module: nn.Module) -> bool:
    """Whether both answer random rows alike."""
    numbers = torch.Generator().manual_seed(0)
    width = next(module.parameters()).shape[-1]
    for num_rows in _TRIAL_ROWS:
        x = torch.randn((1, num_rows, width), generator=numbers).bfloat16()
        with torch.inference_mode():
            found, expected = candidate(x).float(), module(x).float()
        if not (found - expected).norm() <= _TOLERANCE * expected.norm():
            return False
    return True
