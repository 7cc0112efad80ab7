"""Steps that pause for those of others answer as if they had been alone."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from holding import goer

from engine.cores import Cores
from engine.interface import Chunk
from engine.threads import Threads
from protocol.memory import DType
from protocol.sampling import SamplingParams

GREEDY = SamplingParams(temperature=0.0, max_tokens=64, logprobs=True)
NUM_TOKENS = 400  # of a prompt
MANY, AT_MOST = 20, 2000
CORES = len(os.sched_getaffinity(0))


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One for each that there was."""
    found, pause = list[None](), Threads.pause

    def noted(threads: Threads) -> None:
        found.append(None)
        pause(threads)

    monkeypatch.setattr(Threads, "pause", noted)
    return found


@pytest.mark.skipif(CORES < 2, reason="one core is never too few")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_prompt_that_pauses_has_the_same_answer(
    stories: Path,
    memory_of: Callable[..., Any],
    shared_fd: int,
    pauses: list[None],
    dtype: DType,
) -> None:
    """
    Another process goes first all the time, so that a prompt's step has one core or two by
    turns; between two tasks of a tape, or between two layers of the model.

    Its token is the same, and as likely to the last bit.
    """
    engine = memory_of(stories, dtype).engine(threads=2)
    engine.warm_up()
    size = -(-NUM_TOKENS // engine._geometry.block_size)
    tokens = [3 + i % 200 for i in range(NUM_TOKENS)]
    prompt = Chunk(tokens, 0, list(range(size)), GREEDY, 0)
    alone = engine.step([prompt])

    engine.compete(Cores(shared_fd))
    with goer(shared_fd, 1):
        for _ in range(AT_MOST):
            with engine.turn(is_long=True):
                found = engine.step([prompt])

            assert found == alone
            if len(pauses) >= MANY:
                break

    assert len(pauses) >= MANY
