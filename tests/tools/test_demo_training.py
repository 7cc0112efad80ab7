"""The demo model's training, with a model small enough to be trained here."""

from collections.abc import Iterable, Iterator
from itertools import cycle
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from demo_data import training_items
from demo_item import Item, one
from demo_text import IGNORED, Batch, Encoder, pack
from demo_training import Trainer, configuration

ROWS, LENGTH = 2, 128
TINY = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}
ADDED = one("1 + 2", "What is 1 + 2?", "1 + 2 = 3")
REVERSED = one("reverse abc", 'Reverse "abc".', '"cba"')
COPIED = one("copy moon star", "Echo: moon star", "moon star")


@pytest.fixture(scope="module")
def encode(tokenizer: Tokenizer) -> Encoder:
    return Encoder(tokenizer)


@pytest.fixture(scope="module")
def config(tokenizer: Tokenizer) -> LlamaConfig:
    return LlamaConfig(**{**configuration(tokenizer).to_dict(), **TINY})


@pytest.fixture(scope="module")
def overfitted(config: LlamaConfig, encode: Encoder) -> Trainer:
    """A trainer whose model has seen one item only, often."""
    trainer = tiny_trainer(config, num_steps=200)
    batch = packed(encode, [ADDED])
    for _ in range(140):
        trainer.step(batch)
    return trainer


def tiny_trainer(config: LlamaConfig, num_steps: int, seed: int = 0) -> Trainer:
    torch.manual_seed(seed)
    return Trainer(LlamaForCausalLM(config), num_steps, is_compiled=False)


def packed(encode: Encoder, items: Iterable[Item]) -> Batch:
    """Rows of these items, again and again."""
    return pack(cycle(items), encode, ROWS, LENGTH)


def batches(encode: Encoder, first: int, last: int) -> Iterator[Batch]:
    """Each drawn from its own number, as the training script draws them."""
    for n in range(first, last):
        yield pack(training_items(f"0 {n}"), encode, ROWS, LENGTH)


def prompts_with_answers(batch: Batch) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Of each item in the rows what is asked, and what should be said to it."""
    for ids, labels, items in zip(batch.ids, batch.labels, batch.items, strict=True):
        for number in range(1, int(items.max()) + 1):
            is_said = labels[items == number] != IGNORED
            start = int(is_said.nonzero()[0]) + 1
            mine = ids[items == number]
            yield mine[:start], mine[start:]


def generate(model: LlamaForCausalLM, prompt: torch.Tensor, most: int) -> torch.Tensor:
    output = model.generate(
        prompt[None],
        attention_mask=torch.ones_like(prompt)[None],
        max_new_tokens=most,
        do_sample=False,
        pad_token_id=0,
    )
    return output[0, len(prompt) :]


def same_weights(trainer: Trainer, other: Trainer) -> bool:
    weights = (t.model.state_dict().values() for t in (trainer, other))
    return all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_the_loss_falls(config: LlamaConfig, encode: Encoder) -> None:
    """
    Thirty steps on items that differ in every batch make the next ones likelier.
    """
    trainer = tiny_trainer(config, num_steps=60)

    for batch in batches(encode, 0, 30):
        trainer.step(batch)

    first, last = trainer.losses[:5], trainer.losses[-5:]
    assert trainer.num_done == 30
    assert max(last) < min(first)
    assert trainer.recent_loss == pytest.approx(sum(trainer.losses[-10:]) / 10)


def test_an_interrupted_run_goes_on_as_if_it_had_not_been(
    config: LlamaConfig, encode: Encoder, tmp_path: Path
) -> None:
    """
    From its checkpoint a run computes the very losses and weights of an unbroken one.
    """
    unbroken, broken = (tiny_trainer(config, num_steps=8) for _ in range(2))
    for batch in batches(encode, 0, 8):
        unbroken.step(batch)
    for batch in batches(encode, 0, 4):
        broken.step(batch)
    broken.save(tmp_path)

    resumed = tiny_trainer(config, num_steps=8, seed=1)
    resumed.load(tmp_path)
    for batch in batches(encode, resumed.num_done, 8):
        resumed.step(batch)

    assert resumed.losses == unbroken.losses
    assert same_weights(resumed, unbroken)


def test_a_checkpoint_never_is_half_of_one(
    config: LlamaConfig, encode: Encoder, tmp_path: Path
) -> None:
    """
    A new one takes the old one's place at once, for the old file is not written to.
    """
    trainer = tiny_trainer(config, num_steps=8)
    first, second = batches(encode, 0, 2)
    trainer.step(first)
    trainer.save(tmp_path)
    path, old = tmp_path / "checkpoint.safetensors", tmp_path / "old"
    old.hardlink_to(path)
    before = old.read_bytes()

    trainer.step(second)
    trainer.save(tmp_path)

    assert old.read_bytes() == before
    assert path.read_bytes() != before
    assert {file.name for file in tmp_path.iterdir()} == {path.name, old.name}


def test_without_a_checkpoint_a_run_begins(config: LlamaConfig, tmp_path: Path) -> None:
    """
    Loading from an empty directory changes nothing.
    """
    trainer, untouched = (tiny_trainer(config, num_steps=8) for _ in range(2))

    trainer.load(tmp_path)

    assert trainer.num_done == 0
    assert same_weights(trainer, untouched)


def test_an_accuracy_is_a_share_and_survives(
    config: LlamaConfig, encode: Encoder, tmp_path: Path
) -> None:
    """
    Of each family the share is between none and all, and a checkpoint keeps it.
    """
    trainer = tiny_trainer(config, num_steps=8)
    first, second = batches(encode, 0, 2)

    trainer.check({"first": first, "second": second})
    trainer.save(tmp_path)
    resumed = tiny_trainer(config, num_steps=8, seed=1)
    resumed.load(tmp_path)

    assert trainer.accuracy.keys() == {"first", "second"}
    assert all(0 <= share <= 1 for share in trainer.accuracy.values())
    assert resumed.accuracy == trainer.accuracy


def test_what_was_seen_often_is_known(overfitted: Trainer, encode: Encoder) -> None:
    """
    A model that saw one item only has learnt that one, and no other.
    """
    overfitted.check(
        {
            "seen": packed(encode, [ADDED]),
            "mixed": packed(encode, [ADDED, REVERSED, COPIED]),
            "unseen": packed(encode, [REVERSED, COPIED]),
        }
    )

    accuracy = overfitted.accuracy
    assert accuracy["seen"] == 1
    assert 0 < accuracy["mixed"] < 1
    assert accuracy["unseen"] == 0


def test_the_share_is_what_greedy_decoding_gets_right(
    overfitted: Trainer, encode: Encoder
) -> None:
    """
    Checking by teacher forcing gives what `generate` answers right, item by item.
    """
    batch = packed(encode, [ADDED, REVERSED, COPIED])

    overfitted.check({"mixed": batch})
    is_right = [
        torch.equal(generate(overfitted.model, prompt, len(answer)), answer)
        for prompt, answer in prompts_with_answers(batch)
    ]

    assert 0 < sum(is_right) < len(is_right)
    assert overfitted.accuracy["mixed"] == pytest.approx(sum(is_right) / len(is_right))
