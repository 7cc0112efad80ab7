"""What a step of a model must read and multiply, whoever computes it.

Of a mixture of experts a token multiplies with those that it is sent to, and a step reads
those that some token is sent to: with random weights any expert is as likely as another.

As a program it tells in how much time this machine reads and multiplies that, for compare.py:
of one stream, as `tandem bench --json` would.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoConfig, PreTrainedConfig

BYTES = 2  # of a weight, of K and of V: bfloat16


def head_dim_of(config: PreTrainedConfig) -> int:
    """Some families leave it to be divided."""
    given = getattr(config, "head_dim", None)
    return int(given or config.hidden_size // config.num_attention_heads)


@dataclass(frozen=True, slots=True)
class Floors:
    """Of one model, whose weights have so many bytes."""

    config: PreTrainedConfig
    weights_bytes: int

    def decode_bytes(self, num_sequences: int, num_tokens: int) -> float:
        """Read for a token of each sequence, with so many before each."""
        config = self.config
        of_token = 2 * BYTES * config.num_key_value_heads * head_dim_of(config)
        kv = num_sequences * num_tokens * of_token * config.num_hidden_layers
        return self._dense_bytes + self._experts_bytes * self._read(num_sequences) + kv

    def prompt_operations(self, num_tokens: int) -> float:
        """Of the products and the attention of a whole prompt; the last layer is for one
        token only.
        """
        config = self.config
        last = BYTES * config.vocab_size * config.hidden_size
        multiplied = self._dense_bytes - last + self._experts_bytes * self._read(1)
        products = multiplied * num_tokens  # two operations for two bytes
        width = config.num_attention_heads * head_dim_of(config)
        attended = 2 * num_tokens**2 * width * config.num_hidden_layers
        return products + attended

    @property
    def _experts_bytes(self) -> int:
        config = self.config
        num_experts = getattr(config, "num_experts", 0)
        if not num_experts:
            return 0
        of_one = 3 * config.moe_intermediate_size * config.hidden_size
        return int(BYTES * num_experts * of_one * config.num_hidden_layers)

    @property
    def _dense_bytes(self) -> int:
        """Of what every step reads: of an embedding that is no last layer too, a row."""
        embedding = BYTES * self.config.vocab_size * self.config.hidden_size
        read = self.weights_bytes - self._experts_bytes
        return read if self.config.tie_word_embeddings else read - embedding

    def _read(self, num_tokens: int) -> float:
        """The part of all experts that so many tokens are sent to, in the mean."""
        if not self._experts_bytes:
            return 0.0
        chosen = self.config.num_experts_per_tok / self.config.num_experts
        return float(1 - (1 - chosen) ** num_tokens)


def milliseconds(
    floors: Floors, num_input: int, num_output: int, rates: tuple[float, float]
) -> dict[str, float]:
    """By bytes and operations per second: of a prompt, and of a token of its answer."""
    read, multiplied = rates
    in_the_middle = num_input + num_output // 2
    return {
        "TTFT p50, ms": 1000 * floors.prompt_operations(num_input) / multiplied,
        "TPOT p50, ms": 1000 * floors.decode_bytes(1, in_the_middle) / read,
    }


def main() -> None:
    from steps import multiplied_per_second, read_bytes_per_second

    parser = argparse.ArgumentParser(description="What no server can beat here.")
    parser.add_argument("model", type=Path, help="a folder with a model in bfloat16")
    parser.add_argument("--input", type=int, required=True)
    parser.add_argument("--output", type=int, required=True)
    options, _ = parser.parse_known_args()
    weights_bytes = sum(
        path.stat().st_size for path in options.model.glob("*.safetensors")
    )
    floors = Floors(AutoConfig.from_pretrained(options.model), weights_bytes)
    rates = read_bytes_per_second(), multiplied_per_second()
    found = milliseconds(floors, options.input, options.output, rates)
    figures = {title: {"median": value} for title, value in found.items()}
    print(json.dumps({"runs": [], "figures": figures}))


if __name__ == "__main__":
    main()
