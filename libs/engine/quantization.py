"""Weights of linear layers as int8, one scale for each output. Knows no kernel.

w[o, i] is near q[o, i] * scale[o] with scale[o] = max |w[o]| / 127: symmetric, and off
by half a scale at most. Activations stay as they are.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from engine.errors import UnsupportedModel

_LARGEST = 127
_SCALE = "weight_scale"


class QuantizedLinear(nn.Module):
    """`nn.Linear` whose weights are int8; what kernels of ours stand in for."""

    def __init__(self, of: nn.Linear) -> None:
        """With weights still to be bound, where those of `of` lie."""
        super().__init__()
        self.in_features, self.out_features = of.in_features, of.out_features
        device = of.weight.device
        weight = torch.empty(of.weight.shape, dtype=torch.int8, device=device)
        scale = torch.empty(self.out_features, dtype=torch.float32, device=device)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.weight_scale = nn.Parameter(scale, requires_grad=False)
        self.bias = of.bias

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs], of the weights as bfloat16."""
        return linear(x, dequantize(self.weight, self.weight_scale), self.bias)


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight [outputs, inputs] as int8 and scales [outputs] float32.

    Outputs whose weights are all zero have the scale one.
    """
    exact = weight.float()
    scale = exact.abs().amax(dim=1) / _LARGEST
    scale[scale == 0] = 1.0
    return (exact / scale[:, None]).round().to(torch.int8), scale


def dequantize(weight: Tensor, scale: Tensor) -> Tensor:
    """[outputs, inputs] in bfloat16, rounded."""
    return (weight.float() * scale[:, None]).bfloat16()


def quantize_weights(model: Any) -> dict[str, Tensor]:
    """The int8 weights and scales of a model's linear layers, by their names.

    The model itself is left with what they stand for, as a reference. Raises
    UnsupportedModel when there are none.
    """
    tensors: dict[str, Tensor] = {}
    for name, layer in _quantizable(model):
        weight, scale = quantize(layer.weight)
        layer.weight = nn.Parameter(dequantize(weight, scale), requires_grad=False)
        tensors |= {f"{name}.weight": weight, f"{name}.{_SCALE}": scale}
    if not tensors:
        raise UnsupportedModel(
            "int8 is for linear layers, and it has none but its last"
        )
    return tensors


def expect_quantized(model: nn.Module, names: Iterable[str]) -> None:
    """Make room in a skeleton for int8 weights, where tensors of these names have them."""
    for name in names:
        path, _, own = name.rpartition(".")
        if own == _SCALE:
            parent, _, child = path.rpartition(".")
            layer = model.get_submodule(path)
            assert isinstance(layer, nn.Linear), f"{path} is not a linear layer"
            setattr(model.get_submodule(parent), child, QuantizedLinear(layer))


def _quantizable(model: Any) -> Iterator[tuple[str, nn.Linear]]:
    """All linear layers but those whose small errors choose something.

    The last one chooses tokens, routers choose experts. Merged experts of a mixture are
    no linear layers and stay as they are, as do embeddings and what is tied to them.
    """
    parameters = model.named_parameters(remove_duplicate=False)
    holders = Counter(id(parameter) for _, parameter in parameters)
    last = model.get_output_embeddings()
    for name, module in model.named_modules():
        if type(module) is not nn.Linear or module is last:
            continue
        if name.endswith("gate") or "router" in name or holders[id(module.weight)] > 1:
            continue
        yield name, module
