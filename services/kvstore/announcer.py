"""Tells the pool's streams what the store parked, and clients what it gave up on.

Every handoff goes through here: prefill to decode, drain, and a worker's death.
"""

import asyncio
from itertools import islice

import structlog
from redis.asyncio import Redis

from kvstore.pool import Pool
from kvstore.records import SequenceRecord
from kvstore.store import Failure
from mesh import metrics
from mesh.connect import LOST
from mesh.streams import MAX_DEAD_LETTERS, Letter, post, send, send_all
from mesh.timing import pause
from protocol import keys
from protocol.messages import Failed, PrefillJob
from protocol.wire import encode

RETRY_SECONDS = 0.1
AT_ONCE = 100  # announcements in one round trip

logger = structlog.get_logger()


class Announcer:
    """Empties the store's queues into Redis, in order, however long Redis is away."""

    def __init__(self, redis: Redis, pool: Pool) -> None:
        self._redis = redis
        self._pool = pool
        self._awake = asyncio.Event()

    def wake(self) -> None:
        """Look at the queues: something may be in them."""
        self._awake.set()

    async def run(self, stopping: asyncio.Event) -> None:
        while not stopping.is_set():
            await self._awake.wait()
            self._awake.clear()
            try:
                await self.announce_all()
            except LOST as error:
                logger.warning("announce.delayed", error=type(error).__name__)
                await pause(RETRY_SECONDS, stopping)
                self.wake()

    async def announce_all(self) -> None:
        """Send everything that is due; what could not be sent stays queued."""
        store = self._pool.store
        if store is None:
            return
        while due := list(islice(store.announcements, AT_ONCE)):
            parked = filter(None, map(store.parked, due))
            await send_all(self._redis, map(self._letter, parked))
            for _ in due:
                store.announcements.popleft()
        while store.failures:
            await self._bury(store.failures[0])
            store.failures.popleft()

    def _letter(self, record: SequenceRecord) -> Letter:
        job = record.next_job()
        name = self._pool.name
        is_prefill = isinstance(job, PrefillJob)
        stream = keys.prefill(name) if is_prefill else keys.decode(name)
        fields = {
            "request_id": job.request_id,
            "reply_to": job.reply_to,
            "body": encode(job),
        }
        return Letter(stream, fields)

    async def _bury(self, failure: Failure) -> None:
        request = failure.request
        logger.warning("request.failed", id=request.request_id, reason=failure.reason)
        metrics.DEAD_LETTERS.inc()
        event = Failed(request_id=request.request_id, reason=failure.reason)
        letter = {
            "request_id": request.request_id,
            "reason": failure.reason,
        }
        await send(self._redis, keys.DEAD_LETTERS, letter, MAX_DEAD_LETTERS)
        await post(
            self._redis, {keys.replies(request.reply_to): {"body": encode(event)}}
        )
