"""Train the demo model from scratch: tokenizer, weights, loss curve and model card.

    make demo-model                                     the one in models/demo, again
    python tools/train_demo_model.py --out /tmp/demo --tokens 400000    a short trial

Interrupted, it goes on from its last checkpoint when the same command is given again:
batch n is drawn from (seed, n) alone, so a resumed run sees what an uninterrupted one
would have seen.
"""

import argparse
import random
import shutil
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import ClassVar

import matplotlib
import torch
from matplotlib import pyplot
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import Tokenizer
from transformers import GenerationConfig, LlamaForCausalLM

from demo_card import card
from demo_data import ASKED, FINDING, SHARES, held_out, training_items
from demo_start import begin
from demo_text import Batch, Encoder, pack, save_tokenizer, train_tokenizer
from demo_training import (
    MATRIX_RATE,
    WARMUP_STEPS,
    Trainer,
    configuration,
)

TOKENS_PER_STEP = 8192


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a batch: its rows, their length, and how long the first item of each must be."""

    rows: int
    length: int
    least: int = 0


# Attention costs by length, so most rows are short; some batches are for long passages.
SHORT, WIDE, LONG = Shape(32, 256), Shape(16, 512, 200), Shape(5, 1536, 400)
WIDE_ONE_IN, LONG_ONE_IN = 8, 32
FINDING_STEPS = 600
TOKENIZER_ITEMS = 30_000
STEPS_PER_LINE = 10  # where there is no terminal for a bar
STEPS_PER_CHECKPOINT = 50
STEPS_PER_CHECK = 300
LICENCE = Path(__file__).parents[1] / "LICENSE"

matplotlib.use("Agg")
console = Console()


@dataclass(frozen=True, slots=True)
class Options:
    out: Path
    work: Path
    num_steps: int
    seed: int
    is_compiled: bool


def train(options: Options) -> None:
    options.work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(options.seed)
    tokenizer = _tokenizer(options)
    encode = Encoder(tokenizer)
    # On a CPU plain attention is the fastest one to differentiate.
    model = LlamaForCausalLM._from_config(
        configuration(tokenizer), attn_implementation="eager"
    )
    begin(model)
    trainer = Trainer(model, options.num_steps, is_compiled=options.is_compiled)
    trainer.load(options.work)
    checked = {family: _held_out_batch(family, encode) for family in ASKED}
    with _Display(options.num_steps, trainer.num_done) as display:
        for step in range(trainer.num_done, options.num_steps):
            trainer.step(_batch(encode, options.seed, step))
            display.advance(trainer)
            if trainer.num_done % STEPS_PER_CHECK == 0 or display.is_last:
                trainer.check(checked)
                display.tell_accuracy(trainer)
            if trainer.num_done % STEPS_PER_CHECKPOINT == 0 or display.is_last:
                trainer.save(options.work)
                _draw(trainer.losses, options.work / "loss.png")
    _export(options, trainer, tokenizer)
    console.print(f"the model is in {options.out}")


def _tokenizer(options: Options) -> Tokenizer:
    path = options.work / "tokenizer.json"
    if not path.exists():
        with console.status("training the tokenizer"):
            items = training_items(options.seed, FINDING)
            train_tokenizer(next(items) for _ in range(TOKENIZER_ITEMS)).save(str(path))
    return Tokenizer.from_file(str(path))


def _batch(encode: Encoder, seed: int, step: int) -> Batch:
    shape = SHORT
    if (step + 1) % WIDE_ONE_IN == 0:
        shape = LONG if (step + 1) % LONG_ONE_IN == 0 else WIDE
    shares = FINDING if step < FINDING_STEPS else SHARES
    items = training_items(f"{seed} {step}", shares)
    return pack(items, encode, shape.rows, shape.length, shape.least)


def _held_out_batch(family: str, encode: Encoder) -> Batch:
    rng = random.Random(f"check {family}")
    items = (held_out(family, rng) for _ in repeat(None))
    return pack(items, encode, WIDE.rows, WIDE.length)


class _Display:
    """Progress as a bar on a terminal, as lines elsewhere."""

    columns: ClassVar = (
        TextColumn("step {task.completed}/{task.total}"),
        BarColumn(),
        TextColumn("{task.description}"),
        TimeRemainingColumn(),
    )

    def __init__(self, num_steps: int, num_done: int) -> None:
        self._progress = Progress(*self.columns, console=console)
        self._task = self._progress.add_task("", total=num_steps, completed=num_done)

    def __enter__(self) -> "_Display":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    @property
    def is_last(self) -> bool:
        return self._progress.finished

    def advance(self, trainer: Trainer) -> None:
        loss = f"loss {trainer.recent_loss:.3f}"
        self._progress.update(self._task, advance=1, description=loss)
        if not console.is_terminal and trainer.num_done % STEPS_PER_LINE == 0:
            console.print(f"step {trainer.num_done}: {loss}")

    def tell_accuracy(self, trainer: Trainer) -> None:
        parts = [f"{name} {share:.0%}" for name, share in trainer.accuracy.items()]
        console.print(f"step {trainer.num_done}, held out: {', '.join(parts)}")


def _draw(losses: list[float], path: Path) -> None:
    figure, axes = pyplot.subplots(figsize=(8, 4))
    axes.plot(losses, linewidth=0.5)
    axes.set(xlabel="step", ylabel="loss, nats per answer token", yscale="log")
    figure.savefig(path, dpi=100, bbox_inches="tight")
    pyplot.close(figure)


def _export(options: Options, trainer: Trainer, tokenizer: Tokenizer) -> None:
    model = trainer.model
    model.config.use_cache = True
    model.generation_config = GenerationConfig(
        bos_token_id=model.config.bos_token_id,
        eos_token_id=model.config.eos_token_id,
        # Greedy, said in a way that every server understands.
        do_sample=True,
        top_k=1,
    )
    model.bfloat16().save_pretrained(options.out)
    (options.out / "model.safetensors").chmod(0o644)  # other users' containers read it
    save_tokenizer(tokenizer, options.out, model.config.max_position_embeddings)
    _draw(trainer.losses, options.out / "loss.png")
    shutil.copy(LICENCE, options.out / "LICENSE")
    text = card(
        model.config,
        trainer.accuracy,
        millions=sum(p.numel() for p in model.parameters()) / 1e6,
        tokens=trainer.num_done * TOKENS_PER_STEP / 1e6,
        steps=trainer.num_done,
        per_step=TOKENS_PER_STEP,
        seed=options.seed,
        rate=MATRIX_RATE,
        warmup=WARMUP_STEPS,
        loss=trainer.recent_loss,
        minutes=trainer.seconds / 60,
        threads=torch.get_num_threads(),
    )
    (options.out / "README.md").write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Train the demo model, or go on with it."
    )
    parser.add_argument("--out", type=Path, default=Path("models/demo"))
    parser.add_argument("--work", type=Path, default=Path(".demo-training"))
    parser.add_argument("--tokens", type=int, default=14_700_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-compile", action="store_true", help="starts sooner")
    asked = parser.parse_args()
    train(
        Options(
            out=asked.out,
            work=asked.work,
            num_steps=max(1, asked.tokens // TOKENS_PER_STEP),
            seed=asked.seed,
            is_compiled=not asked.no_compile,
        )
    )


if __name__ == "__main__":
    main()
