"""A recorded step answers as the model does, for other numbers than it was recorded with."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from engine.batch import pack
from engine.cpu import CpuAttention
from engine.interface import Chunk
from engine.recorder import Eager, Native, Recorder, Unrecordable
from engine.tape import Tapes
from engine.transformer import TransformerEngine
from protocol.sampling import SamplingParams

GREEDY = SamplingParams(temperature=0.0, max_tokens=64)
Fixture = Callable[..., Any]


@pytest.fixture
def engine_of(memory_of: Fixture) -> Callable[[Path], TransformerEngine]:
    """A family's engine in bfloat16, over blocks of zeros."""

    def build(path: Path) -> TransformerEngine:
        memory = memory_of(path, "bfloat16")
        memory.blocks[:] = bytes(len(memory.blocks))
        return memory.engine()

    return build


def step(engine: TransformerEngine, num_rows: int, position: int) -> Any:
    """One token of each of so many sequences, over blocks of their own."""
    chunks = [
        Chunk([5 + row], position + row % 3, [2 * row, 2 * row + 1], GREEDY, 0)
        for row in range(num_rows)
    ]
    return pack(chunks, engine._geometry.block_size)


def eager(engine: TransformerEngine, batch: Any) -> torch.Tensor:
    attention = CpuAttention(engine._blocks, batch)
    return engine._forward(batch, attention, torch.arange(len(batch.token_ids)))


@pytest.mark.parametrize("num_rows", [1, 3, 8])
def test_a_tape_answers_as_the_model(
    each_family: Path, engine_of: Fixture, num_rows: int
) -> None:
    """
    Of every family: to the bit for a model that is recorded, and a mixture of experts,
    which chooses them by their numbers, is not recorded or answers alike.
    """
    engine = engine_of(each_family)
    tapes = engine._tapes
    tapes.logits(step(engine, num_rows, 1), engine._blocks, 1)  # records

    for position in (4, 15, 16, 23):
        batch = step(engine, num_rows, position)
        expected = eager(engine, batch).clone()
        found = tapes.logits(batch, engine._blocks, 2)

        assert torch.equal(found, expected)


@pytest.mark.parametrize(
    "name", ["llama", "qwen2", "qwen3", "mistral-window", "gemma2"]
)
def test_dense_models_are_recorded(
    family: Fixture, engine_of: Fixture, name: str
) -> None:
    """
    What these families compute is a tape, and almost all of it is ours.
    """
    engine = engine_of(family(name))

    engine._tapes.logits(step(engine, 2, 1), engine._blocks, 1)

    tape = engine._tapes._tapes[2]
    assert tape is not None
    assert engine.without_tapes == ""
    theirs = [op for op in tape._operations if isinstance(op, Eager)]
    ours = [op for op in tape._operations if isinstance(op, Native)]
    assert len(ours) > 30
    assert len(theirs) < 25


def test_a_tape_writes_keys_and_values(family: Fixture, memory_of: Fixture) -> None:
    """
    After a replay the blocks are, bit for bit, what the model would have left.
    """
    memory = memory_of(family("llama"), "bfloat16")
    memory.blocks[:] = bytes(len(memory.blocks))
    engine = memory.engine()
    engine._tapes.logits(step(engine, 3, 1), engine._blocks, 1)
    batch = step(engine, 3, 9)
    eager(engine, batch)
    expected = bytes(memory.blocks)
    memory.blocks[:] = bytes(len(memory.blocks))
    eager(engine, step(engine, 3, 1))

    engine._tapes.logits(batch, engine._blocks, 1)

    assert bytes(memory.blocks) == expected


def test_prompts_are_not_for_tapes(stories: Path, memory_of: Fixture) -> None:
    """
    A chunk of several tokens, or too many sequences, go through the model's modules.
    """
    size = 16
    one = pack([Chunk([5], 3, [0], GREEDY, 0)], size)
    prompt = pack([Chunk([5, 6], 0, [0], GREEDY, 0)], size)
    crowd = pack([Chunk([5], 0, [n], GREEDY, 0) for n in range(40)], size)

    assert [Tapes.suits(batch) for batch in (one, prompt, crowd)] == [
        True,
        False,
        False,
    ]


def test_float32_has_no_tapes(stories: Path, memory_of: Fixture) -> None:
    """
    It is transformers' own to the last operation, and the engine says so.
    """
    engine = memory_of(stories, "float32").engine()

    assert "transformers' modules" in engine.without_tapes


@pytest.mark.parametrize(
    "compute",
    [
        lambda x: x * float(x.sum()),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: nn.functional.dropout(x, 0.5),
        lambda x: x.clone().add_(1),
    ],
    ids=["value", "mask", "nonzero", "chance", "in place"],
)
def test_what_depends_on_values_is_refused(
    compute: Callable[[torch.Tensor], object],
) -> None:
    """
    An operation that Python reads from, whose size or luck varies, or that overwrites
    its input cannot be replayed.
    """
    x = torch.ones(4)

    refused = pytest.raises(Unrecordable)
    with refused, torch.inference_mode(), Recorder().recording():
        compute(x)


def test_a_wrong_tape_is_never_used(
    family: Fixture, engine_of: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A model that hides a number from the recorder answers by its modules: the first
    replay, with other numbers, shows it.
    """
    engine = engine_of(family("llama"))
    embedding = engine._forward._model.model.embed_tokens
    hidden = type(embedding).forward
    monkeypatch.setattr(
        embedding,
        "forward",
        lambda ids: hidden(embedding, torch.tensor(ids.numpy().tolist())),
    )
    batch = step(engine, 2, 5)

    found = engine._tapes.logits(batch, engine._blocks, 1).clone()
    again = engine._tapes.logits(step(engine, 2, 5), engine._blocks, 1)

    assert engine._tapes._tapes[2] is None
    assert engine.without_tapes
    assert torch.equal(found, again)
