"""The worker's main loop: while one step computes, the one before is told."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from itertools import groupby
from typing import TypeVar

from redis.asyncio import Redis

from mesh import metrics
from worker.core import Core, Outcome
from worker.inbox import Arrival, Inbox
from worker.publisher import publish
from worker.sequence import Sequence

R = TypeVar("R")


class Rounds:
    """Drives one core on its thread, and carries its words to Redis."""

    def __init__(
        self, core: Core, inbox: Inbox, redis: Redis, engine_thread: Executor
    ) -> None:
        self._core = core
        self._inbox = inbox
        self._redis = redis
        self._thread = engine_thread
        self._unsaid = Outcome()  # of the last step; its clients do not know yet
        self._unacknowledged: list[Arrival] = []
        self._told: list[Sequence] = []  # finished, and their clients know

    async def run(self, stopping: asyncio.Event) -> None:
        while not stopping.is_set():
            if self._is_idle:
                await self._inbox.wait_for_arrivals()
            await self._round(stopping)
        await self._drain(stopping)

    @property
    def _is_idle(self) -> bool:
        return not (
            len(self._core.batch)
            or len(self._inbox)
            or self._unsaid.events
            or self._told
            or self._unacknowledged
        )

    async def _round(self, stopping: asyncio.Event) -> None:
        arrivals, told = self._inbox.take(), self._told
        jobs = [arrival.job for arrival in arrivals]
        computing = self._on_thread(lambda: self._core.round(jobs, told))
        try:
            await self._say(stopping)
        finally:
            self._unsaid = await computing
        self._unacknowledged = arrivals
        self._inbox.settle(len(self._core.batch))
        metrics.NUM_REQUESTS_RUNNING.set(len(self._core.batch))

    async def _say(self, stopping: asyncio.Event) -> None:
        """Tell what the last step said; its finished sequences may then be released."""
        unsaid, self._unsaid = self._unsaid, Outcome()
        gone = await publish(self._redis, unsaid.events, stopping)
        self._told = unsaid.finished
        await acknowledge(self._unacknowledged)
        self._unacknowledged = []
        if gone:
            await self._on_thread(lambda: self._core.drop_all_of(gone))

    async def _drain(self, stopping: asyncio.Event) -> None:
        """Leave everything, also what just arrived, to the other workers."""
        await self._say(stopping)
        arrivals, told = self._inbox.take(), self._told
        jobs = [arrival.job for arrival in arrivals]
        self._unsaid = await self._on_thread(lambda: self._core.drain(jobs, told))
        self._unacknowledged = arrivals
        await self._say(stopping)
        told = self._told
        await self._on_thread(lambda: self._core.drain([], told))

    def _on_thread(self, work: Callable[[], R]) -> asyncio.Future[R]:
        return asyncio.get_running_loop().run_in_executor(self._thread, work)


async def acknowledge(arrivals: list[Arrival]) -> None:
    """The store knows who has these jobs: the streams may forget them."""
    for consumer, of_one in groupby(arrivals, key=lambda arrival: arrival.consumer):
        await consumer.acknowledge(arrival.entry for arrival in of_one)
