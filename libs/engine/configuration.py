"""What a model's configuration alone says about it. Loads no weights."""

from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from engine.errors import BrokenCheckpoint, UnsupportedModel

_SERVED_LAYERS = frozenset({"full_attention", "sliding_attention"})


def read_configuration(path: Path) -> PreTrainedConfig:
    """The model's configuration, once it is clear that this engine may serve it.

    Raises BrokenCheckpoint when it cannot be read, UnsupportedModel with a reason.
    """
    if not (path / "config.json").is_file():
        raise BrokenCheckpoint(f"{path} has no config.json: not a model's directory")
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            path, local_files_only=True, trust_remote_code=False
        )
    except (ValueError, OSError, KeyError, TypeError, AttributeError) as error:
        raise BrokenCheckpoint(
            f"cannot understand {path / 'config.json'}: {error}"
        ) from error
    _refuse_other_kinds(config)
    return config


def layer_types(config: PreTrainedConfig) -> list[str] | None:
    """What kind of attention each layer has, where the configuration tells."""
    types = getattr(config.get_text_config(), "layer_types", None)
    return None if types is None else list(types)


def max_position(config: PreTrainedConfig) -> int:
    """How many tokens a sequence may have, prompt and output together.

    Sequences of different lengths share one rotary call, so where RoPE changes its
    frequencies with the length ("longrope", "dynamic") the limit is where it would.
    """
    text = config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None)
    if not isinstance(limit, int):
        raise UnsupportedModel("its configuration does not say how long it can read")
    for rope in _rope_parameters(text):
        if rope.get("rope_type") == "longrope":
            limit = min(limit, int(rope["original_max_position_embeddings"]))
    return limit


def _rope_parameters(config: PreTrainedConfig) -> list[dict[str, Any]]:
    """RoPE's parameters: of all layers, or one entry per layer type."""
    rope = getattr(config, "rope_parameters", None) or {}
    if "rope_type" in rope:
        return [rope]
    return [entry for entry in rope.values() if isinstance(entry, dict)]


def _refuse_other_kinds(config: PreTrainedConfig) -> None:
    if config.is_encoder_decoder:
        raise UnsupportedModel("it is an encoder with a decoder, not a decoder alone")
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise UnsupportedModel(f"{config.model_type!r} is not a causal language model")
    strange = set(layer_types(config) or ()) - _SERVED_LAYERS
    if strange:
        names = ", ".join(sorted(strange))
        raise UnsupportedModel(f"it has layers of the type {names}")
