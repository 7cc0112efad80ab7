"""A worker that hangs with its connection open: others go on, and it ends on waking."""

import asyncio
import signal
from typing import Any

import psutil
import pytest
from running import RunningMesh
from storm import (
    ASKED,
    LONG_PROMPTS,
    once_at,
    remember,
    signal_all,
    streamed,
    undisturbed,
)
from waiting import wait_until

pytestmark = pytest.mark.chaos

SHORT_SECONDS = 0.7  # of a lease of two


@pytest.mark.parametrize(
    ("service", "asked", "num_tokens"),
    [("decode", ASKED, 60), ("prefill", LONG_PROMPTS, 1)],
    ids=["decode", "prefill"],
)
async def test_a_stopped_worker(
    whole_mesh: RunningMesh,
    service: str,
    asked: list[dict[str, Any]],
    num_tokens: int,
) -> None:
    """
    Streams of a stopped process continue elsewhere while it still exists. When it wakes
    it ends itself, and nothing that it wrote meanwhile was read by anyone.
    """
    calm = await undisturbed(whole_mesh, asked)
    victim = whole_mesh.pids(service)[:1]
    stop = once_at(num_tokens, lambda: signal_all(victim, signal.SIGSTOP))
    try:
        wild = await streamed(whole_mesh, stop, asked)

        assert psutil.Process(victim[0]).status() == psutil.STATUS_STOPPED
    finally:
        signal_all(victim, signal.SIGCONT)
    remember("a stopped worker", wild)
    assert wild == calm
    await wait_until(lambda: not psutil.pid_exists(victim[0]), seconds=10)


async def test_a_short_stop_costs_nothing(whole_mesh: RunningMesh) -> None:
    """
    Who is stopped for less than its lease goes on itself.
    """
    calm = await undisturbed(whole_mesh)
    victims = whole_mesh.pids("decode")

    def stop_and_go() -> None:
        signal_all(victims, signal.SIGSTOP)
        loop = asyncio.get_running_loop()
        loop.call_later(SHORT_SECONDS, signal_all, victims, signal.SIGCONT)

    wild = await streamed(whole_mesh, once_at(60, stop_and_go))

    remember("a short stop costs nothing", wild)
    assert wild == calm
    assert whole_mesh.pids("decode") == victims
