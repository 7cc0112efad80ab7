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
from engine.operations import Kind
from engine.program import Program
from engine.recorder import Eager, Native, Operation, Recorder, Unrecordable
from engine.tapes import _Kind
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
        return memory.engine(threads=2)

    return build


def step(engine: TransformerEngine, num_rows: int, position: int) -> Any:
    """One token of each of so many sequences, over blocks of their own."""
    chunks = [
        Chunk([5 + row], position + row % 3, [2 * row, 2 * row + 1], GREEDY, 0)
        for row in range(num_rows)
    ]
    return pack(chunks, engine._geometry.block_size)


def prompts(engine: TransformerEngine, *lengths: int) -> Any:
    """Chunks of so many tokens, each of a sequence of its own; a long one starts late.

    The last token of each is sampled, but of every third.
    """
    size, first, chunks = engine._geometry.block_size, 0, []
    for row, length in enumerate(lengths):
        before = 5 if length > 20 else 0
        end = first + engine._geometry.num_blocks(before + length)
        tokens = [3 + (7 * row + i) % 90 for i in range(length)]
        index = None if row % 3 == 2 else 0
        chunks.append(Chunk(tokens, before, list(range(first, end)), GREEDY, index))
        first = end
    return pack(chunks, size)


def operations(engine: TransformerEngine, *, is_long: bool = False) -> list[Operation]:
    """Of the tape of steps of a few tokens, or of many."""
    tape = engine._tapes._tapes[_Kind(is_long=is_long, is_wide=False)]
    assert tape is not None
    return [operation for group in tape._groups for operation in group]


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
    tapes.logits(step(engine, num_rows, 1), engine._blocks)  # records

    for position in (4, 15, 16, 23):
        batch = step(engine, num_rows, position)
        expected = eager(engine, batch).clone()
        found = tapes.logits(batch, engine._blocks)

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

    engine._tapes.logits(step(engine, 2, 1), engine._blocks)

    engine._tapes.logits(prompts(engine, 40, 1), engine._blocks)

    assert engine.without_tapes == ""
    for is_long in (False, True):
        recorded = operations(engine, is_long=is_long)
        assert sum(isinstance(op, Native) for op in recorded) > 30
        assert sum(isinstance(op, Eager) for op in recorded) < 25


def test_a_step_of_decode_is_one_program(family: Fixture, engine_of: Fixture) -> None:
    """
    Angles are looked up, and logits lie where they are: nothing of torch is between.
    """
    engine = engine_of(family("llama"))
    batch = step(engine, 2, 1)
    engine._tapes.logits(batch, engine._blocks)
    engine._tapes.logits(batch, engine._blocks)

    tape = engine._tapes._tapes[_Kind(is_long=False, is_wide=False)]
    (bound,) = tape._bound.values()

    assert [type(part) for part in bound._parts] == [Program]
    assert len(bound.angles) == 2


def test_a_tape_writes_keys_and_values(family: Fixture, memory_of: Fixture) -> None:
    """
    After a replay the blocks are, bit for bit, what the model would have left.
    """
    memory = memory_of(family("llama"), "bfloat16")
    memory.blocks[:] = bytes(len(memory.blocks))
    engine = memory.engine()
    engine._tapes.logits(step(engine, 3, 1), engine._blocks)
    batch = step(engine, 3, 9)
    eager(engine, batch)
    expected = bytes(memory.blocks)
    memory.blocks[:] = bytes(len(memory.blocks))
    eager(engine, step(engine, 3, 1))

    engine._tapes.logits(batch, engine._blocks)

    assert bytes(memory.blocks) == expected


LENGTHS = [(33,), (40, 1, 1, 7), (1, 100), (130, 2, 30), (1, 1, 60, 1)]


def test_a_tape_of_prompts_answers_as_the_model(
    each_family: Path, engine_of: Fixture
) -> None:
    """
    Of every family to the bit, whatever the lengths, with decoding sequences in between
    and chunks that are not sampled: one tape serves all of them.
    """
    engine = engine_of(each_family)
    tapes = engine._tapes
    tapes.logits(prompts(engine, 35), engine._blocks)  # records

    for lengths in LENGTHS:
        batch = prompts(engine, *lengths)
        expected = tapes._by_modules(batch, engine._blocks).clone()
        found = tapes.logits(batch, engine._blocks)

        assert torch.equal(found, expected)


def test_a_tape_serves_a_crowd(family: Fixture, engine_of: Fixture) -> None:
    """
    More sequences decode at once than the kernels for few rows are for, and fewer again.
    """
    engine = engine_of(family("llama"))
    tapes = engine._tapes
    tapes.logits(step(engine, 31, 1), engine._blocks)
    tapes.logits(prompts(engine, *[1] * 60), engine._blocks)

    for num_rows in (50, 2, 63):
        batch = prompts(engine, *[1] * num_rows)
        expected = tapes._by_modules(batch, engine._blocks).clone()

        assert torch.equal(tapes.logits(batch, engine._blocks), expected)
    assert len(tapes._tapes) == 2


def test_a_tape_serves_chunks_that_nobody_samples(
    family: Fixture, engine_of: Fixture
) -> None:
    """
    The middle of a prompt has no logits, and leaves all of its K/V in the blocks.
    """
    engine = engine_of(family("llama"))
    tapes = engine._tapes
    tapes.logits(prompts(engine, 35), engine._blocks)
    batch = pack([Chunk(list(range(3, 53)), 0, [9, 4, 7, 1], GREEDY, None)], 16)
    engine._blocks.memory[:] = 0
    tapes._by_modules(batch, engine._blocks)
    expected = engine._blocks.memory.copy()
    engine._blocks.memory[:] = 0

    logits = tapes.logits(batch, engine._blocks)

    assert len(logits) == 0
    assert (engine._blocks.memory == expected).all()


@pytest.mark.parametrize("token", [-1, 10**6])
@pytest.mark.parametrize("length", [1, 40])
def test_a_token_without_an_embedding_is_refused(
    family: Fixture, engine_of: Fixture, token: int, length: int
) -> None:
    """
    The kernel that picks embeddings looks at no bounds: the tape does, before it runs.
    """
    engine = engine_of(family("llama"))
    tapes = engine._tapes
    tapes.logits(prompts(engine, length), engine._blocks)
    batch = prompts(engine, length)
    batch.token_ids[-1] = token

    with pytest.raises(IndexError, match="token id"):
        tapes.logits(batch, engine._blocks)


def test_a_product_is_packed_once(family: Fixture, engine_of: Fixture) -> None:
    """
    Queries, keys and values are products of the same rows, which lie packed for all.
    """
    engine = engine_of(family("llama"))

    engine._tapes.logits(prompts(engine, 40), engine._blocks)

    kinds = [op.kind for op in operations(engine, is_long=True) if hasattr(op, "kind")]
    packed = [Kind.LINEAR_PACKED, Kind.GATED_LINEAR_PACKED]
    assert kinds.count(Kind.PACK) < sum(map(kinds.count, packed))


def test_a_library_that_multiplies_faster_computes_prompts(
    family: Fixture, engine_of: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Where many rows are its affair, only steps of a few tokens are recorded.
    """
    monkeypatch.setattr("engine.packing.is_ours", lambda: False)
    monkeypatch.setattr("engine.tapes.is_ours", lambda: False)
    engine = engine_of(family("llama"))
    batch = prompts(engine, 40)

    expected = engine._tapes._by_modules(batch, engine._blocks).clone()
    for _ in range(2):
        assert torch.equal(engine._tapes.logits(batch, engine._blocks), expected)
    engine._tapes.logits(step(engine, 2, 1), engine._blocks)

    assert list(engine._tapes._tapes) == [_Kind(is_long=False, is_wide=False)]


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

    found = engine._tapes.logits(batch, engine._blocks).clone()
    again = engine._tapes.logits(step(engine, 2, 5), engine._blocks)

    assert engine._tapes._tapes[_Kind(is_long=False, is_wide=False)] is None
    assert engine.without_tapes
    assert torch.equal(found, again)
