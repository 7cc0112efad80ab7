"""Answers that stream while something happens to the mesh."""

import asyncio
import os
import signal
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

from asking import Streamed, stream
from running import RunningMesh

from bench.measures import pause

NUM_STREAMS = 32
ASKED = [
    {"prompt": [1, 300 + number], "max_tokens": 120, "ignore_eos": True}
    for number in range(NUM_STREAMS)
]
LONG_ANSWERS = [{**request, "max_tokens": 450} for request in ASKED]
LONG_PROMPTS = [
    {"prompt": [1] + [300 + n % 100] * 400, "max_tokens": 10, "ignore_eos": True}
    for n in range(NUM_STREAMS)
]
# By what happened: of each stream its longest pause, in seconds and in steps.
pauses: dict[str, list[tuple[float, int]]] = {}
_calm: dict[int, list[Streamed]] = {}
_runs = count()


async def streamed(
    mesh: RunningMesh,
    on_tokens: Callable[[int], object] = lambda num_tokens: None,
    asked: Sequence[dict[str, Any]] = ASKED,
) -> list[Streamed]:
    """All answers; no run shares blocks with an earlier one."""
    salt = f"run {next(_runs)}"
    return await asyncio.gather(
        *(stream(mesh.url, on_tokens, cache_salt=salt, **request) for request in asked)
    )


async def undisturbed(
    mesh: RunningMesh, asked: Sequence[dict[str, Any]] = ASKED
) -> list[Streamed]:
    """The same answers while nothing happens; asked for once in all tests."""
    if id(asked) not in _calm:
        _calm[id(asked)] = await streamed(mesh, asked=asked)
    return _calm[id(asked)]


def remember(scenario: str, answers: Sequence[Streamed]) -> None:
    """How long its clients waited, for the summary at the end of the tests."""
    everyone = [answer.times for answer in answers]
    seen = (pause(times, everyone) for times in everyone)
    pauses.setdefault(scenario, []).extend(seen)


def once_at(num_tokens: int, act: Callable[[], object]) -> Callable[[int], None]:
    """Act when the first of the streams has that many tokens."""
    done: list[object] = []

    def on_tokens(count: int) -> None:
        if count >= num_tokens and not done:
            done.append(True)
            act()

    return on_tokens


def signal_all(pids: list[int], number: signal.Signals = signal.SIGKILL) -> None:
    for pid in pids:
        os.kill(pid, number)
