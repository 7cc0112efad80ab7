"""The demo model and its training state: shape, steps, checks on held-out items, checkpoints.

Muon (Jordan et al. 2024) moves the matrices, AdamW embeddings and norms. Knows nothing of
what the batches say.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from demo_text import BEGIN, END, IGNORED, Batch

WARMUP_STEPS = 40
MATRIX_RATE, OTHER_RATE = 3e-3, 3e-3
DECAY = 0.05
MAX_GRADIENT_NORM = 1.0
RECENT_STEPS = 10


def configuration(tokenizer: Tokenizer) -> LlamaConfig:
    """Deep rather than wide: layers are what early exit can skip."""
    return LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=12,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        initializer_range=0.04,
        bos_token_id=tokenizer.token_to_id(BEGIN),
        eos_token_id=tokenizer.token_to_id(END),
        pad_token_id=None,
        use_cache=False,
        dtype="float32",
    )


class History(TypedDict):
    """Of each step its loss and its time; of the last check the accuracy by family."""

    loss: list[float]
    seconds: list[float]
    accuracy: dict[str, float]


class Optimizers:
    """One step of all parameters, at a rate that rises, stays and falls to nothing."""

    def __init__(self, model: nn.Module, num_steps: int) -> None:
        self._num_steps = num_steps
        named = dict(model.named_parameters())
        is_matrix = {n: p.ndim == 2 and "embed" not in n for n, p in named.items()}
        self._parameters = list(named.values())
        self._muon = torch.optim.Muon(
            [p for name, p in named.items() if is_matrix[name]],
            weight_decay=DECAY,
            adjust_lr_fn="match_rms_adamw",
        )
        self._adamw = torch.optim.AdamW(
            [p for name, p in named.items() if not is_matrix[name]],
            betas=(0.9, 0.98),
            weight_decay=0.0,
        )

    def step(self, step: int) -> None:
        """Take the gradients' step, and clear them."""
        nn.utils.clip_grad_norm_(self._parameters, MAX_GRADIENT_NORM)
        self._set_rate(self._muon, MATRIX_RATE * self._share(step))
        self._set_rate(self._adamw, OTHER_RATE * self._share(step))
        for optimizer in (self._muon, self._adamw):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def _share(self, step: int) -> float:
        rising = (step + 1) / WARMUP_STEPS
        return min(1.0, rising, 1.2 * (1 - step / self._num_steps))

    @staticmethod
    def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
        for group in optimizer.param_groups:
            group["lr"] = rate

    def tensors(self) -> dict[str, Tensor]:
        """The optimizers' state by name, as safetensors keep it."""
        return {
            f"{name}.{index}.{key}": value
            for name, optimizer in self._named().items()
            for index, state in optimizer.state_dict()["state"].items()
            for key, value in state.items()
        }

    def load(self, tensors: dict[str, Tensor]) -> None:
        for name, optimizer in self._named().items():
            state: dict[int, dict[str, Tensor]] = {}
            for full, value in tensors.items():
                owner, index, key = full.split(".")
                if owner == name:
                    state.setdefault(int(index), {})[key] = value
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})

    def _named(self) -> dict[str, torch.optim.Optimizer]:
        return {"muon": self._muon, "adamw": self._adamw}


class Trainer:
    """A model on its way: fp32 weights, computed with under bf16 autocast."""

    def __init__(
        self, model: LlamaForCausalLM, num_steps: int, *, is_compiled: bool
    ) -> None:
        self.model = model
        self._body = torch.compile(model.model) if is_compiled else model.model
        self._optimizers = Optimizers(model, num_steps)
        self._history: History = {"loss": [], "seconds": [], "accuracy": {}}

    @property
    def num_done(self) -> int:
        return len(self.losses)

    @property
    def losses(self) -> list[float]:
        """Of each step, in nats per answer token."""
        return self._history["loss"]

    @property
    def recent_loss(self) -> float:
        last = self.losses[-RECENT_STEPS:]
        return sum(last) / len(last)

    @property
    def seconds(self) -> float:
        return sum(self._history["seconds"])

    @property
    def accuracy(self) -> dict[str, float]:
        """By family, at the last check."""
        return self._history["accuracy"]

    def step(self, batch: Batch) -> None:
        began = time.monotonic()
        is_answer = batch.labels != IGNORED
        with torch.autocast("cpu", torch.bfloat16):
            logits = self.model.lm_head(self._hidden(batch)[is_answer])
        loss = functional.cross_entropy(logits.float(), batch.labels[is_answer])
        loss.backward()
        self._optimizers.step(self.num_done)
        self._history["loss"].append(round(loss.item(), 4))
        self._history["seconds"].append(round(time.monotonic() - began, 3))

    def check(self, batches: Mapping[str, Batch]) -> None:
        """The share of items of each batch whose answers greedy decoding would give in
        full: it does when each of their tokens is the likeliest after those before it.
        """
        self._history["accuracy"] = {
            family: self._share_right(batch) for family, batch in batches.items()
        }

    @torch.no_grad()
    def _share_right(self, batch: Batch) -> float:
        with torch.autocast("cpu", torch.bfloat16):
            likeliest = self.model.lm_head(self._hidden(batch)).argmax(-1)
        is_wrong = (batch.labels != IGNORED) & (likeliest != batch.labels)
        rows, length = batch.items.shape
        numbers = batch.items + torch.arange(rows)[:, None] * length
        num_items = len(numbers[batch.items > 0].unique())
        return 1 - len(numbers[is_wrong].unique()) / num_items

    def _hidden(self, batch: Batch) -> Tensor:
        hidden: Tensor = self._body(batch.ids, attention_mask=batch.mask())[0]
        return hidden

    def save(self, work: Path) -> None:
        """A checkpoint in place of the last one; a broken-off write leaves that."""
        tensors = {f"model.{n}": p.detach() for n, p in self.model.named_parameters()}
        tensors |= {f"state.{n}": t for n, t in self._optimizers.tensors().items()}
        draft = work / "checkpoint.new"
        save_file(tensors, draft, {"history": json.dumps(self._history)})
        draft.replace(work / "checkpoint.safetensors")

    def load(self, work: Path) -> None:
        """Go on from the checkpoint there, if there is one."""
        path = work / "checkpoint.safetensors"
        if not path.exists():
            return
        tensors = load_file(path)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(tensors[f"model.{name}"])
        self._optimizers.load(
            {
                name.removeprefix("state."): tensor
                for name, tensor in tensors.items()
                if name.startswith("state.")
            }
        )
        with safe_open(path, "pt") as file:
            self._history = json.loads(file.metadata()["history"])
