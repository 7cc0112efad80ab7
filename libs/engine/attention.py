"""Attention as transformers calls it, handed on to paged memory.

Registered under one name; a model built with that name calls `attend` in every layer
and passes down the step's `PagedAttention`, which knows the blocks. What the paged
kernels do not honour is refused by name, never ignored.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, masking_utils

from engine.errors import UnsupportedModel

IMPLEMENTATION = "tandem"

# Keywords that change nothing for causal attention over packed sequences.
_HARMLESS = frozenset(
    {
        "cache_position",
        "is_causal",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "position_ids",
        "return_dict",
        "use_cache",
    }
)


@dataclass(frozen=True, slots=True)
class ScoreRule:
    """How a query scores a key: softcap(scaling * q.k) if the window still sees it."""

    scaling: float
    window: int = 0  # tokens, the query's own included; 0 sees everything before
    softcap: float = 0.0  # c * tanh(score / c); 0 caps nothing


class PagedAttention(Protocol):
    """One step's attention, for every layer."""

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: ScoreRule
    ) -> Tensor:
        """Store this step's K and V of a layer, then attend through the block tables.

        query [num_tokens, num_heads, k_head_dim], key [num_tokens, num_kv_heads,
        k_head_dim], value [.., .., v_head_dim], all in the blocks' dtype.
        Returns [num_tokens, num_heads, v_head_dim] in that dtype.
        """
        ...


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **arguments: Any,
) -> tuple[Tensor, None]:
    """The function that transformers' attention modules call.

    query, key and value are [1, heads, num_tokens, dim], rotary applied. The answer is
    [1, num_tokens, num_heads, v_head_dim] and no attention weights.

    Raises UnsupportedModel for an argument that the kernels do not honour.
    """
    paged: PagedAttention | None = arguments.pop("paged_attention", None)
    if paged is None:
        raise UnsupportedModel("it does not pass keyword arguments to its attention")
    if attention_mask is not None:
        raise UnsupportedModel("it makes an attention mask of its own")
    rule = _rule(query.shape[-1], arguments)
    _refuse_the_rest(module, arguments)
    output = paged.attend(
        _layer_index(module),
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        rule,
    )
    return output.unsqueeze(0), None


def _rule(head_dim: int, arguments: dict[str, Any]) -> ScoreRule:
    scaling = arguments.pop("scaling", None)
    return ScoreRule(
        scaling=head_dim**-0.5 if scaling is None else float(scaling),
        window=arguments.pop("sliding_window", None) or 0,
        softcap=arguments.pop("softcap", None) or 0.0,
    )


def _layer_index(module: nn.Module) -> int:
    index = getattr(module, "layer_idx", None)
    if not isinstance(index, int):
        raise UnsupportedModel("its attention does not know which layer it is")
    return index


def _refuse_the_rest(module: nn.Module, arguments: dict[str, Any]) -> None:
    if arguments.pop("dropout", None):
        raise UnsupportedModel("it drops attention weights at random")
    causal = arguments.get("is_causal")
    if not (getattr(module, "is_causal", True) if causal is None else causal):
        raise UnsupportedModel("a layer of it attends to later tokens")
    for name, value in arguments.items():
        if value is not None and value is not False and name not in _HARMLESS:
            raise UnsupportedModel(f"its attention uses {name!r}")


def register() -> None:
    """Make the implementation known to transformers; repeating it is harmless."""
    AttentionInterface.register(IMPLEMENTATION, attend)
    # No mask: the kernels know from positions and windows what a token may see. So
    # nobody need look through the positions for where sequences begin.
    AttentionMaskInterface.register(IMPLEMENTATION, lambda *_, **__: None)
    masking_utils.find_packed_sequence_indices = lambda position_ids: None


def bits(tensor: Tensor) -> Any:
    """A contiguous tensor as numpy sees it: float32, or the bits of bfloat16."""
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.view(torch.uint16)
    return tensor.numpy()
