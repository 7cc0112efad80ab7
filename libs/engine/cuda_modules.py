"""Modules that stand in for transformers' on a GPU: fewer kernels, and larger products.

They read the same weights where they lie. Projections that read the same input lie side
by side in the weights segment, so one product computes them all; norms, activations and
rotary embedding are one kernel each. In bfloat16 only, each kind on trial
(`engine.stand_ins`).
"""

from collections.abc import Sequence
from inspect import unwrap
from typing import Any

from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from engine.products import Gated, Product, Sum
from engine.rotary import replace_rotary
from engine.stand_ins import is_bfloat16, replace
from engine.triton_rows import Activation, gate, rms_norm, rotate

_ACTIVATIONS: tuple[Activation, ...] = ("silu", "gelu_tanh")
_MLP = ("gate_proj", "up_proj", "down_proj")
_ATTENTION = ("q_proj", "k_proj", "v_proj")
_ALONE = ("o_proj", "down_proj", "lm_head")


class RMSNorm(nn.Module):
    """Root mean square normalisation in one kernel."""

    def __init__(self, weight: nn.Parameter, epsilon: float, offset: float) -> None:
        super().__init__()
        self.weight = weight
        self._epsilon, self._offset = epsilon, offset

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] to the same."""
        return rms_norm(x, self.weight, self._epsilon, self._offset)


class GatedMLP(nn.Module):
    """down(activation(gate(x)) * up(x)), gate and up in one product if they can."""

    def __init__(self, of: Any, activation: Activation) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = of.gate_proj, of.up_proj
        self.down_proj = of.down_proj
        self._activation: Activation = activation
        both = spanning([of.gate_proj.weight, of.up_proj.weight])
        self._both = None if both is None else Gated(both, activation)

    def forward(self, x: Tensor) -> Tensor:
        """[..., hidden] to the same."""
        answer: Tensor = self.down_proj(self.gated(x))
        return answer

    def gated(self, x: Tensor) -> Tensor:
        """What `down_proj` reads: [..., hidden] to [..., intermediate]."""
        if self._both is None:
            return gate(self.gate_proj(x), self.up_proj(x), self._activation)
        answer: Tensor = self._both(x)
        return answer


class _Joined:
    """Projections of one input as one product, kept until the last has its part."""

    def __init__(self, product: Product, sizes: list[int]) -> None:
        self._product = product
        self._sizes = sizes
        self._input: Tensor | None = None
        self._parts: Sequence[Tensor] = ()

    def part(self, index: int, x: Tensor) -> Tensor:
        if x is not self._input:
            self._input = x
            self._parts = self._product(x).split(self._sizes, -1)
        part = self._parts[index]
        if index == len(self._sizes) - 1:
            self._input, self._parts = None, ()
        return part


class Part(nn.Module):
    """One of several projections of the same input."""

    def __init__(self, of: nn.Linear, joined: _Joined, index: int) -> None:
        super().__init__()
        self.weight, self.bias = of.weight, of.bias
        self._joined, self._index = joined, index

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs], perhaps a part of wider rows."""
        return self._joined.part(self._index, x)


def speed_up(model: nn.Module) -> None:
    """Replace what can be replaced in a bound model of bfloat16, each kind on trial.

    Products are torch's until something else is chosen (`engine.kernel_choice`).
    """
    replace(model, _candidates)
    for module in list(model.modules()):
        if is_bfloat16(module):
            _join_projections(module)
            replace_rotary(module, _rotated)
            _join_residuals(module)
            _replace_products(module)


def spanning(tensors: Sequence[Tensor]) -> Tensor | None:
    """One tensor over all of these, along their first dimension, where they lie.

    None if they do not lie one right after the other in one piece of memory.
    """
    first = tensors[0]
    end = first.data_ptr()
    for tensor in tensors:
        if (
            tensor.data_ptr() != end
            or not tensor.is_contiguous()
            or tensor.shape[1:] != first.shape[1:]
            or tensor.untyped_storage().data_ptr() != first.untyped_storage().data_ptr()
        ):
            return None
        end += tensor.nbytes
    rows = sum(len(tensor) for tensor in tensors)
    return first.detach().as_strided((rows, *first.shape[1:]), first.stride())


def _join_projections(module: nn.Module) -> None:
    """Let queries, keys and values be one product. Exact: the same sums, side by side."""
    children = dict(module.named_children())
    found = [children.get(name) for name in _ATTENTION]
    linears = [each for each in found if type(each) is nn.Linear]
    if len(linears) < len(_ATTENTION):
        return
    weight = spanning([each.weight for each in linears])
    biases = [each.bias for each in linears if each.bias is not None]
    bias = spanning(biases) if len(biases) == len(linears) else None
    if weight is None or (biases and bias is None):
        return
    module.projections = Product(weight, bias)
    joined = _Joined(module.projections, [each.out_features for each in linears])
    for index, (name, each) in enumerate(zip(_ATTENTION, linears, strict=True)):
        setattr(module, name, Part(each, joined, index).eval())


def _join_residuals(layer: nn.Module) -> None:
    """Let a layer's products add to the residual stream, in place, as they end.

    For layers whose forward is Llama's to the instruction, as that of many families is.
    """
    mlp, attention = getattr(layer, "mlp", None), getattr(layer, "self_attn", None)
    if not isinstance(mlp, GatedMLP) or not _is_llama_s(layer):
        return
    output = getattr(attention, "o_proj", None)
    if type(output) is not nn.Linear or output.bias is not None:
        return
    attention.o_proj = nn.Identity()
    out, down = Sum(output.weight).eval(), Sum(mlp.down_proj.weight).eval()
    layer.output_sum, mlp.down_proj = out, down  # mlp itself is no longer called
    normalised, normalised_again = layer.input_layernorm, layer.post_attention_layernorm

    def added(hidden_states: Tensor, **arguments: Any) -> Tensor:
        stream = hidden_states[0]
        attended, _ = attention(hidden_states=normalised(hidden_states), **arguments)
        out(attended[0], stream)
        down(mlp.gated(normalised_again(hidden_states))[0], stream)
        return hidden_states

    layer.forward = added


def _replace_products(module: nn.Module) -> None:
    """Let few rows of what is left take a kernel too."""
    for name, each in list(module.named_children()):
        if name in _ALONE and type(each) is nn.Linear and each.weight.is_contiguous():
            setattr(module, name, Product(each.weight, each.bias).eval())


def _is_llama_s(layer: nn.Module) -> bool:
    """Whether a decoder layer's forward does what Llama's does, in the same words."""
    ours, llama_s = (
        unwrap(each.forward).__code__ for each in (type(layer), LlamaDecoderLayer)
    )
    return (ours.co_code, ours.co_names, ours.co_varnames) == (
        llama_s.co_code,
        llama_s.co_names,
        llama_s.co_varnames,
    )


def _candidates(module: nn.Module) -> list[nn.Module]:
    """What might stand in for a module, by its looks."""
    if isinstance(module, RMSNorm | GatedMLP):
        return []
    if type(module).__name__.endswith("RMSNorm"):
        epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
        parameters = list(module.parameters())
        if epsilon is not None and len(parameters) == 1:
            return [RMSNorm(parameters[0], epsilon, offset) for offset in (0.0, 1.0)]
    children = dict(module.named_children())
    projections = [children.get(name) for name in _MLP]
    if all(type(each) is nn.Linear and each.bias is None for each in projections):
        return [GatedMLP(module, curve) for curve in _ACTIVATIONS]
    return []


def _rotated(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """q and k are [1, heads, tokens, dim], cos and sin are [1, tokens, dim]."""
    turned = rotate(q[0].transpose(0, 1), k[0].transpose(0, 1), cos[0], sin[0])
    by_head = (each.transpose(0, 1).unsqueeze(0) for each in turned)
    new_q, new_k = by_head
    return new_q, new_k
