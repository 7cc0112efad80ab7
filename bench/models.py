"""Models of real shapes with random weights: a benchmark of speed needs no other.

    python bench/models.py llama-120m --out /tmp/llama-120m

Token n is the word "n", so a prompt has as many tokens as words, and the same tokens
whether it is sent as text or as ids.
"""

import argparse
from pathlib import Path

import torch
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

SPECIAL = {"<unk>": 0, "<s>": 1, "</s>": 2}

ROPE = {"rope_type": "default", "rope_theta": 500_000.0}

SHAPES: dict[str, PreTrainedConfig] = {
    "llama-120m": LlamaConfig(
        vocab_size=32_000,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=4,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
    ),
    "qwen2.5-0.5b": Qwen2Config(
        vocab_size=151_936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=32_768,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
    ),
    "llama-3.2-1b": LlamaConfig(
        vocab_size=128_256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        max_position_embeddings=131_072,
        tie_word_embeddings=True,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500_000.0,
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    ),
    "llama-3.1-8b": LlamaConfig(
        vocab_size=128_256,
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=131_072,
        tie_word_embeddings=False,
        rope_parameters=ROPE,
    ),
    "llama-3.2-3b": LlamaConfig(
        vocab_size=128_256,
        hidden_size=3072,
        intermediate_size=8192,
        num_hidden_layers=28,
        num_attention_heads=24,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=131_072,
        tie_word_embeddings=True,
        rope_parameters=ROPE,
    ),
    "qwen3-0.6b": Qwen3Config(
        vocab_size=151_936,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40_960,
        tie_word_embeddings=True,
        rope_parameters=ROPE,
    ),
    "qwen3-30b-a3b": Qwen3MoeConfig(
        vocab_size=151_936,
        hidden_size=2048,
        intermediate_size=6144,
        moe_intermediate_size=768,
        num_hidden_layers=48,
        num_attention_heads=32,
        num_key_value_heads=4,
        head_dim=128,
        num_experts=128,
        num_experts_per_tok=8,
        norm_topk_prob=True,
        max_position_embeddings=40_960,
        tie_word_embeddings=False,
        rope_parameters=ROPE,
    ),
}


def make(shape: str, out: Path, device: str = "cpu") -> None:
    """Write configuration, bfloat16 weights (seed 0) and tokenizer of a shape.

    The weights are drawn on that device: billions of them take minutes on a CPU.
    """
    config = SHAPES[shape]
    config.bos_token_id, config.eos_token_id = SPECIAL["<s>"], SPECIAL["</s>"]
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(out)
    _tokenizer(config.vocab_size).save_pretrained(out)


def _tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    words = {str(number): number for number in range(len(SPECIAL), vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(SPECIAL | words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.Sequence([decoders.Fuse()])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Make a model with random weights.")
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    with Console(stderr=True).status(f"making {options.shape}"):
        make(options.shape, options.out)
    print(options.out)


if __name__ == "__main__":
    main()
