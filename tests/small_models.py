"""Tiny random models of every family, sequences of a test's own, and how to play them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedConfig

from engine.interface import Chunk, Engine
from protocol.sampling import SamplingParams

BLOCK_SIZE = 16
NUM_BLOCKS = 64
_CHUNK_SIZES = (13, 5, 1, 29, 3, 17)
GREEDY = SamplingParams(temperature=0.0, max_tokens=64)

_SMALL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    # Wide enough that what a token says depends on what it attends to.
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_HEADS_OF_8 = {"head_dim": 8}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
_WINDOWS = {
    "head_dim": 8,
    "sliding_window": 13,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    # Gemma's tied embeddings of a random model would only ever repeat the last token.
    "tie_word_embeddings": False,
}
_LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 12,
    "num_key_value_heads": 4,
}

# Of each model: its configuration's class and what differs from _SMALL.
FAMILIES = {
    "llama": ("LlamaConfig", {}),
    "llama-tied": ("LlamaConfig", {"tie_word_embeddings": True}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", _HEADS_OF_8),
    "mistral": ("MistralConfig", {"sliding_window": None}),
    "mistral-window": ("MistralConfig", {"sliding_window": 21}),
    "phi3": ("Phi3Config", {}),
    "phi3-longrope": (
        "Phi3Config",
        {
            "original_max_position_embeddings": 128,
            "rope_parameters": {
                "rope_type": "longrope",
                "factor": 2.0,
                "rope_theta": 10000.0,
                "short_factor": [1.0, 1.1, 1.2, 1.3],
                "long_factor": [2.0, 3.0, 4.0, 5.0],
            },
        },
    ),
    "llama-dynamic": (
        "LlamaConfig",
        {
            "rope_parameters": {
                "rope_type": "dynamic",
                "rope_theta": 10000.0,
                "factor": 2.0,
            }
        },
    ),
    "olmo2": ("Olmo2Config", {}),
    "gemma2": (
        "Gemma2Config",
        {
            **_WINDOWS,
            "attn_logit_softcapping": 1.0,
        },
    ),
    "gemma3": (
        "Gemma3TextConfig",
        _WINDOWS,
    ),
    "mixtral": ("MixtralConfig", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3-moe": ("Qwen3MoeConfig", {**_HEADS_OF_8, **_EXPERTS, "num_experts": 4}),
    "deepseek-v3": (
        "DeepseekV3Config",
        {
            **_LATENT,
            **_EXPERTS,
            "n_routed_experts": 4,
            "n_group": 2,
            "topk_group": 1,
            "first_k_dense_replace": 1,
        },
    ),
}


@dataclass
class Sequences:
    """Sequences in the care of a test: tokens so far, block tables, what is computed."""

    tokens: list[list[int]]
    sampling: SamplingParams
    num_steps: int = 0

    def __post_init__(self) -> None:
        count, order = len(self.tokens), torch.Generator().manual_seed(3)
        scattered = torch.randperm(NUM_BLOCKS, generator=order).tolist()
        share = NUM_BLOCKS // count
        self.block_tables = [
            scattered[i * share : (i + 1) * share] for i in range(count)
        ]
        self.num_prompt_tokens = [len(tokens) for tokens in self.tokens]
        self.num_computed_tokens = [0] * count

    def outputs(self) -> list[list[int]]:
        return [
            tokens[start:]
            for tokens, start in zip(self.tokens, self.num_prompt_tokens, strict=True)
        ]

    def are_done(self, num_tokens: int) -> bool:
        return all(len(output) >= num_tokens for output in self.outputs())

    def step(self, engine: Engine, num_tokens: int) -> None:
        """One step of all that lack tokens, in chunks of sizes that keep changing."""
        unfinished = [
            i for i, output in enumerate(self.outputs()) if len(output) < num_tokens
        ]
        chunks = [self._chunk(i) for i in unfinished]
        for i, chunk, token in zip(
            unfinished, chunks, engine.step(chunks), strict=True
        ):
            self.num_computed_tokens[i] += len(chunk.token_ids)
            if token is not None:
                self.tokens[i].append(token.token_id)
        self.num_steps += 1

    def _chunk(self, i: int) -> Chunk:
        tokens, done = self.tokens[i], self.num_computed_tokens[i]
        size = _CHUNK_SIZES[(self.num_steps + i) % len(_CHUNK_SIZES)]
        is_last = done + size >= len(tokens)
        return Chunk(
            token_ids=tokens[done : done + size],
            num_computed_tokens=done,
            block_table=self.block_tables[i],
            sampling=self.sampling,
            sample_index=len(tokens) - self.num_prompt_tokens[i] if is_last else None,
        )


def save_model(path: Path, class_name: str, **changes: object) -> Path:
    """A random model with these changes to a small configuration, always the same."""
    config_class: type[PreTrainedConfig] = getattr(transformers, class_name)
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(config_class(**{**_SMALL, **changes}))
    model.save_pretrained(path)
    return path


def play(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    num_tokens: int,
    sampling: SamplingParams = GREEDY,
) -> list[list[int]]:
    """Generate `num_tokens` for each prompt: packed, in uneven chunks, scattered."""
    sequences = Sequences([list(prompt) for prompt in prompts], sampling)
    while not sequences.are_done(num_tokens):
        sequences.step(engine, num_tokens)
    return sequences.outputs()


def generate(
    path: Path, prompts: Sequence[Sequence[int]], num_tokens: int
) -> list[list[int]]:
    """What transformers' own greedy `generate` answers to each prompt by itself."""
    model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager")
    model.generation_config.eos_token_id = None
    return [
        model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=num_tokens,
            do_sample=False,
        )[0, len(prompt) :].tolist()
        for prompt in prompts
    ]
