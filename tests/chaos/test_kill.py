"""`kill -9` while answers are streaming: clients see a pause, and the same tokens."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable

import pytest
from asking import Streamed, stream
from running import RunningMesh
from waiting import wait_until

pytestmark = pytest.mark.chaos

NUM_STREAMS = 8
ASKED = [
    {"prompt": [1, 300 + number], "max_tokens": 200, "ignore_eos": True}
    for number in range(NUM_STREAMS)
]
LONG_PROMPTS = [
    {"prompt": [1] + [300 + n % 100] * 400, "max_tokens": 10, "ignore_eos": True}
    for n in range(2 * NUM_STREAMS)
]


@pytest.fixture
async def whole_mesh(mesh: RunningMesh) -> AsyncIterator[RunningMesh]:
    """All four workers are up before the test, and again before the next one."""
    await wait_until(lambda: is_whole(mesh), seconds=60)
    yield mesh
    await wait_until(mesh.is_idle)
    await wait_until(lambda: is_whole(mesh), seconds=60)


def is_whole(mesh: RunningMesh) -> bool:
    return len(mesh.pids("prefill")) == len(mesh.pids("decode")) == 2


async def streamed(
    mesh: RunningMesh, on_tokens: Callable[[int], object] = lambda num_tokens: None
) -> list[Streamed]:
    return await asyncio.gather(
        *(stream(mesh.url, on_tokens, **request) for request in ASKED)
    )


def once_at(num_tokens: int, act: Callable[[], object]) -> Callable[[int], None]:
    """Act when the first of the streams has that many tokens."""
    done: list[object] = []

    def on_tokens(count: int) -> None:
        if count >= num_tokens and not done:
            done.append(True)
            act()

    return on_tokens


def kill_all(pids: list[int], number: signal.Signals = signal.SIGKILL) -> None:
    for pid in pids:
        os.kill(pid, number)


async def test_a_killed_decode_worker(whole_mesh: RunningMesh) -> None:
    """
    With a second decode worker alive, the streams of the killed one continue there.
    """
    calm = await streamed(whole_mesh)
    victim = whole_mesh.pids("decode")[:1]

    wild = await streamed(whole_mesh, once_at(60, lambda: kill_all(victim)))

    assert wild == calm


async def test_all_decode_workers_killed(whole_mesh: RunningMesh) -> None:
    """
    With no decode worker left, the streams pause until one is back, and continue.
    """
    calm = await streamed(whole_mesh)
    victims = whole_mesh.pids("decode")

    wild = await streamed(whole_mesh, once_at(60, lambda: kill_all(victims)))

    assert wild == calm


async def test_prefill_workers_killed_before_the_first_token(
    whole_mesh: RunningMesh,
) -> None:
    """
    Prompts whose prefill workers are killed under them are answered all the same.
    """
    calm = await asyncio.gather(*(stream(whole_mesh.url, **r) for r in LONG_PROMPTS))
    victims = whole_mesh.pids("prefill")
    # The first token of all: the other prompts are still being computed, or wait.
    kill_at_first = once_at(1, lambda: kill_all(victims))

    wild = await asyncio.gather(
        *(stream(whole_mesh.url, kill_at_first, **r) for r in LONG_PROMPTS)
    )

    assert wild == calm


async def test_a_drained_worker_hands_over(whole_mesh: RunningMesh) -> None:
    """
    SIGTERM parks a worker's sequences between two steps; others continue them.
    """
    calm = await streamed(whole_mesh)
    victim = whole_mesh.pids("decode")[:1]

    wild = await streamed(
        whole_mesh, once_at(60, lambda: kill_all(victim, signal.SIGTERM))
    )

    assert wild == calm


async def test_sampled_output_survives_too(whole_mesh: RunningMesh) -> None:
    """
    A seeded sampled answer is the same whether or not its worker was killed.
    """
    asked = {"prompt": [1], "max_tokens": 150, "temperature": 1.0, "seed": 11}
    asked |= {"ignore_eos": True}
    calm = await stream(whole_mesh.url, **asked)
    victims = whole_mesh.pids("decode")

    wild = await stream(whole_mesh.url, once_at(40, lambda: kill_all(victims)), **asked)

    assert wild == calm


async def test_a_killed_store(whole_mesh: RunningMesh) -> None:
    """
    When the store dies its memory is gone: the answers are computed again up to where
    each client is, and go on there.
    """
    calm = await streamed(whole_mesh)
    victim = whole_mesh.pids("kvstore")

    wild = await streamed(whole_mesh, once_at(60, lambda: kill_all(victim)))

    assert wild == calm
