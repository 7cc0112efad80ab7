"""A pool's jobs to fetch sequences from other pools: never more than can be fetched.

What is not read yet waits in the stream, and outlives this process.
"""

import asyncio
from itertools import count

import structlog
from redis.asyncio import Redis

from kvstore.announcer import Announcer, tell_failed
from kvstore.pool import Pool
from kvstore.store import Store
from kvstore.transfer import Transfer
from mesh import metrics
from mesh.connect import LOST, MAX_BLOCK_SECONDS
from mesh.streams import MAX_DELIVERIES, Consumer, Entry
from mesh.timing import pause
from protocol import keys
from protocol.messages import RequestId, decode_transfer
from protocol.wire import MalformedMessage

MAX_TRANSFERS = 8  # at a time
RETRY_SECONDS = 0.5
LOOK_SECONDS = 0.2  # between looks whether the pool has its model
TAKE_OVER_SECONDS = 30.0  # after which a job is done again that was not acknowledged

logger = structlog.get_logger()


class Receiver:
    """One pool's jobs to fetch sequences from others."""

    def __init__(
        self, redis: Redis, pool: Pool, announcer: Announcer, worker_id: str
    ) -> None:
        stream = keys.transfers(pool.name)
        self._redis = redis
        self._pool = pool
        self._announcer = announcer
        self._consumer = Consumer(redis, stream, keys.GROUP_OF_TRANSFERS, worker_id)
        self._running: set[asyncio.Task[None]] = set()
        self._numbers = count()

    async def run(self, stopping: asyncio.Event) -> None:
        """Read jobs and do them, until told to stop."""
        clock = asyncio.get_running_loop().time
        next_sweep = clock()
        idle_seconds = 0.0  # a pool has one store: whoever was at a job before is dead
        async with asyncio.TaskGroup() as tasks:
            while not stopping.is_set():
                store, slots = self._pool.store, MAX_TRANSFERS - len(self._running)
                if store is None or not slots:
                    await self._wait(stopping)
                    continue
                try:
                    entries = []
                    if clock() >= next_sweep:
                        entries = await self._consumer.take_over(slots, idle_seconds)
                        next_sweep = clock() + TAKE_OVER_SECONDS / 4
                        idle_seconds = TAKE_OVER_SECONDS
                    if not entries:
                        entries = await self._consumer.take(slots, MAX_BLOCK_SECONDS)
                except LOST as error:
                    logger.warning("transfers.lost", error=type(error).__name__)
                    await pause(RETRY_SECONDS, stopping)
                    continue
                for entry in entries:
                    self._start(tasks, store, entry)
            for task in self._running:
                task.cancel()

    async def _wait(self, stopping: asyncio.Event) -> None:
        """Until a transfer ends, or the pool may have its model."""
        if self._running:
            await asyncio.wait(
                self._running,
                timeout=MAX_BLOCK_SECONDS,
                return_when=asyncio.FIRST_COMPLETED,
            )
        else:
            await pause(LOOK_SECONDS, stopping)

    def _start(self, tasks: asyncio.TaskGroup, store: Store, entry: Entry) -> None:
        name = f"receiver-{next(self._numbers)}"
        task = tasks.create_task(self._settle(store, entry, name), name=name)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _settle(self, store: Store, entry: Entry, name: str) -> None:
        """Do what an entry asks for, then acknowledge it."""
        try:
            if entry.deliveries > MAX_DELIVERIES:
                raise MalformedMessage("delivered too often")
            job = decode_transfer(entry.fields.get(b"body", b""))
            with store.carrying(name):
                transfer = Transfer(self._pool.memory, store, job, name)
                await transfer.run(self._redis)
            await self._consumer.acknowledge([entry])
        except MalformedMessage as error:
            await self._bury(entry, str(error))
        except LOST as error:
            logger.warning("transfer.unacknowledged", error=type(error).__name__)
        finally:
            self._announcer.wake()

    async def _bury(self, entry: Entry, reason: str) -> None:
        logger.warning("transfer.buried", reason=reason)
        metrics.DEAD_LETTERS.inc()
        await self._consumer.bury(entry, reason, keys.DEAD_LETTERS)
        request_id = entry.fields.get(b"request_id", b"").decode(errors="replace")
        reply_to = entry.fields.get(b"reply_to", b"").decode(errors="replace")
        if request_id and reply_to:
            await tell_failed(self._redis, RequestId(request_id), reply_to, reason)
