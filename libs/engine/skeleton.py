"""A model without weights, and the names its weights are found by."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig

from engine.attention import IMPLEMENTATION, register
from engine.errors import UnsupportedModel
from engine.memory import Memory, as_bytes
from protocol.memory import TensorSpec


def skeleton(config: PreTrainedConfig, dtype: torch.dtype) -> Any:
    """The model of transformers with our attention, all of it on `meta`.

    Raises UnsupportedModel when it cannot be built so.
    """
    register()
    try:
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(
                config, dtype=dtype, attn_implementation=IMPLEMENTATION
            )
    except Exception as error:
        raise UnsupportedModel(
            f"it cannot be built with our attention: {type(error).__name__}: {error}"
        ) from error
    return model.eval().requires_grad_(False)


def state(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by name, non-persistent and tied ones too."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def bind(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Point the skeleton's parameters and buffers to these tensors; copies nothing.

    Raises UnsupportedModel when a tensor is missing, or something stays on `meta`.
    """
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        for own, parameter in module._parameters.items():
            if parameter is not None:
                tensor = _find(tensors, prefix + own)
                module._parameters[own] = nn.Parameter(tensor, requires_grad=False)
        for own, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[own] = _find(tensors, prefix + own)
        _freeze_rotary(module)
    for name in _left_on_meta(model):
        raise UnsupportedModel(f"{name} is neither a parameter nor a buffer")


def views(memory: Memory, specs: Sequence[TensorSpec]) -> dict[str, Tensor]:
    """The tensors that lie in `memory`, by name, without copying."""
    whole = as_bytes(memory)
    return {spec.name: _view(whole, spec) for spec in specs}


def _view(whole: Tensor, spec: TensorSpec) -> Tensor:
    dtype: torch.dtype = getattr(torch, spec.dtype)
    num_bytes = dtype.itemsize * int(torch.Size(spec.shape).numel())
    part = whole[spec.offset : spec.offset + num_bytes]
    return part.view(dtype).view(spec.shape)


def _find(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    try:
        return tensors[name]
    except KeyError:
        raise UnsupportedModel(f"its weights have no {name}") from None


def _freeze_rotary(module: Any) -> None:
    """Keep RoPE at the frequencies it was loaded with.

    Types that follow the length write their buffers anew in every step, even below the
    length where they change, and the weights are read-only. `max_position` stays below.
    """
    match getattr(module, "rope_type", None):
        case str():
            module.rope_type = "default"
        case dict() as per_layer_type:
            module.rope_type = dict.fromkeys(per_layer_type, "default")


def _left_on_meta(model: nn.Module) -> Iterator[str]:
    for name, module in model.named_modules():
        plain = vars(module).items()
        held = [*module._parameters.items(), *module._buffers.items(), *plain]
        for own, value in held:
            if isinstance(value, Tensor) and value.is_meta:
                yield f"{name}.{own}"
