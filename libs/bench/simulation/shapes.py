"""The shape of a model, as far as its cost depends on it. Knows no weights and no device.

Dense decoders with gated MLPs: Llama, Mistral, Qwen2 and Qwen3, Phi-3 and their like.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from mesh.errors import ConfigurationError

EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


@dataclass(frozen=True, slots=True)
class Shape:
    """Names and values of the model's config.json; weights and K/V in bfloat16."""

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    is_tied: bool = False  # embedding and last layer are one matrix
    bytes_per_value: int = 2

    @property
    def layer_weights(self) -> int:
        """Of all layers: what every token is multiplied with."""
        heads = 2 * self.num_heads + 2 * self.num_kv_heads
        attention = self.hidden_size * self.head_dim * heads
        mlp = 3 * self.hidden_size * self.intermediate_size
        return self.num_layers * (attention + mlp)

    @property
    def head_weights(self) -> int:
        """Of the last layer: what every sampled token is multiplied with."""
        return self.hidden_size * self.vocab_size

    @property
    def streamed_bytes(self) -> int:
        """What a step reads of the weights; of the embedding it reads a few rows."""
        return (self.layer_weights + self.head_weights) * self.bytes_per_value

    @property
    def weights_bytes(self) -> int:
        """What lies in memory, but for norms."""
        num_embedding = 0 if self.is_tied else self.head_weights
        return self.streamed_bytes + num_embedding * self.bytes_per_value

    @property
    def kv_bytes_per_token(self) -> int:
        per_layer = 2 * self.num_kv_heads * self.head_dim
        return self.num_layers * per_layer * self.bytes_per_value

    @property
    def flops_per_pair(self) -> int:
        """Of one query with one key: their product, and the weighted value."""
        return 4 * self.num_layers * self.num_heads * self.head_dim


# From the models' own config.json.
SHAPES = {
    "llama-120m": Shape(12, 768, 2048, 12, 4, 64, 32_000),
    "qwen2.5-0.5b": Shape(24, 896, 4864, 14, 2, 64, 151_936, is_tied=True),
    "llama-3.2-1b": Shape(16, 2048, 8192, 32, 8, 64, 128_256, is_tied=True),
    "llama-3-8b": Shape(32, 4096, 14_336, 32, 8, 128, 128_256),
    "qwen2.5-14b": Shape(48, 5120, 13_824, 40, 8, 128, 152_064),
    "qwen2.5-32b": Shape(64, 5120, 27_648, 40, 8, 128, 152_064),
    "llama-3-70b": Shape(80, 8192, 28_672, 64, 8, 128, 128_256),
}


def shape_of(model: str) -> Shape:
    """Of a known name, or of a directory's config.json; ConfigurationError of neither."""
    if model in SHAPES:
        return SHAPES[model]
    path = Path(model).expanduser()
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        names = ", ".join(SHAPES)
        raise ConfigurationError(f"{model}: no config.json, and none of {names}")
    try:
        return _read(json.loads(path.read_text()))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigurationError(f"{path}: {type(error).__name__} {error}") from None


def _read(config: dict[str, int]) -> Shape:
    if any(config.get(name) for name in EXPERTS):
        raise ValueError("a mixture of experts is not simulated")
    num_heads = config["num_attention_heads"]
    return Shape(
        num_layers=config["num_hidden_layers"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        num_heads=num_heads,
        num_kv_heads=config.get("num_key_value_heads") or num_heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // num_heads,
        vocab_size=config["vocab_size"],
        is_tied=bool(config.get("tie_word_embeddings")),
    )
