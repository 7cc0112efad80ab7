"""Rows that nobody samples leave the pass after the last attention, and nobody notices."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import NUM_BLOCKS
from torch import Tensor

from engine.batch import pack
from engine.blocks import KVBlocks
from engine.cpu import CpuAttention
from engine.errors import UnsupportedModel
from engine.interface import Chunk
from engine.proof import own_logits, prove_stand_ins
from engine.recorder import Recorder
from engine.sampled import sampled_logits
from engine.token_wise import TokenWise
from protocol.sampling import SamplingParams

GREEDY = SamplingParams(temperature=0.0, max_tokens=1)
NUMBERS = torch.Generator().manual_seed(5)
TOKENS = torch.randint(3, 96, (40,), generator=NUMBERS).tolist()


def chunks(*sampled: bool) -> list[Chunk]:
    """Two prompts of 30 and 10 tokens, and whether each one's last token is sampled."""
    pieces = (TOKENS[:30], [0, 1]), (TOKENS[30:], [2])
    return [
        Chunk(ids, 0, table, GREEDY, 0 if is_sampled else None)
        for (ids, table), is_sampled in zip(pieces, sampled, strict=True)
    ]


def both(engine: Any, step: Sequence[Chunk]) -> list[tuple[Tensor, Any]]:
    """Logits of the sampled rows and the blocks: of the whole pass, and of these rows."""
    batch = pack(step, engine._geometry.block_size)
    rows = torch.from_numpy(batch.last_rows)
    whole, alone = (KVBlocks.scratch(NUM_BLOCKS, engine._geometry) for _ in range(2))
    return [
        (engine._forward(batch, CpuAttention(whole, batch), rows), whole.memory),
        (
            sampled_logits(engine._forward, engine._tapes._recorder, batch, alone),
            alone.memory,
        ),
    ]


def test_sampled_rows_answer_as_in_a_whole_pass(
    each_family: Path, memory_of: Callable[..., Any]
) -> None:
    """
    Of every family: all K/V are written as ever, and a middling row has its logits, for
    few rows round elsewhere and rounding may choose other experts.
    """
    engine = memory_of(each_family, "bfloat16").engine()

    (expected, blocks), (found, same_blocks) = both(engine, chunks(True, True))

    errors = (found - expected).float().norm(dim=-1) / expected.float().norm(dim=-1)
    assert errors.min() < 0.05
    assert (blocks == same_blocks).all()


def test_a_chunk_without_a_sampled_row_writes_its_blocks(
    family: Callable[[str], Path], memory_of: Callable[..., Any]
) -> None:
    """
    The middle of a long prompt: no logits at all, and all of its K/V.
    """
    engine = memory_of(family("llama"), "bfloat16").engine()

    (_, blocks), (found, same_blocks) = both(engine, chunks(False, False))

    assert len(found) == 0
    assert (blocks == same_blocks).all()


def test_the_next_pass_is_whole_again(
    family: Callable[[str], Path], memory_of: Callable[..., Any]
) -> None:
    """
    Also after a pass that failed with its rows narrowed.
    """
    recorder = memory_of(family("llama"), "bfloat16").engine()._tapes._recorder
    x = torch.zeros(1, 40, 8)

    def fail() -> None:
        with recorder.narrowing(40, torch.tensor([3])) as narrow:
            narrow()
            assert recorder.wanted(x).tolist() == [3]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()

    assert recorder.wanted(x) is None


def test_only_the_pass_itself_is_narrowed() -> None:
    """
    Tokens that experts got, heads of a token, and rows that were picked out already are
    other rows than those of the pass.
    """

    ones = partial(torch.ones, dtype=torch.bfloat16)

    class Doubled(TokenWise):
        def compute(self, x: Tensor) -> Tensor:
            return 2 * x

    recorder = Recorder()
    double = Doubled(recorder)

    with recorder.narrowing(4, torch.tensor([1, 3])) as narrow:
        before = double(ones(1, 4, 2))
        narrow()
        after = double(ones(1, 4, 2))
        others = [double(ones(*shape)) for shape in ((4, 2), (1, 2, 2), (1, 4, 2, 2))]

    assert before.eq(2).all()
    assert after[0, :, 0].tolist() == [0, 2, 0, 2]
    assert all(each.eq(2).all() for each in others)


def test_a_model_that_needs_the_other_rows_is_refused(
    family: Callable[[str], Path], memory_of: Callable[..., Any]
) -> None:
    """
    A module that mixes tokens after the last attention would answer something else.
    """
    memory = memory_of(family("llama"), "bfloat16")
    engine = memory.engine()
    served, recorder = engine._forward._model, engine._tapes._recorder
    checkpoint = memory.checkpoint
    narrowing = recorder.narrowing
    recorder.narrowing = lambda count, rows: narrowing(count, rows - 1)

    with pytest.raises(UnsupportedModel, match="sampled rows alone differ"):
        prove_stand_ins(
            own_logits(checkpoint._loaded, checkpoint.facts),
            served,
            checkpoint.facts,
            checkpoint.geometry,
            recorder=recorder,
        )
