"""Tells the pool's streams what the store parked, and clients what it gave up on.

Every handoff goes through here: prefill to decode, drain, a worker's death, and another
pool.
"""

import asyncio
from itertools import islice

import structlog
from redis.asyncio import Redis

from kvstore.pool import Pool
from kvstore.records import SequenceRecord
from kvstore.store import Failure
from kvstore.transport import KVTransport, LocalTransport
from mesh import metrics
from mesh.connect import LOST
from mesh.streams import MAX_DEAD_LETTERS, Letter, post, send, send_all
from mesh.timing import pause
from protocol import keys
from protocol.messages import Failed, RequestId
from protocol.wire import encode

RETRY_SECONDS = 0.1
AT_ONCE = 100  # announcements in one round trip

logger = structlog.get_logger()


class Announcer:
    """Empties the store's queues into Redis, in order, however long Redis is away."""

    def __init__(
        self, redis: Redis, pool: Pool, transport: KVTransport | None = None
    ) -> None:
        """Without a transport everything goes on in this pool."""
        self._redis = redis
        self._pool = pool
        self._transport = transport or LocalTransport(pool.name)
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
        stream, job = self._transport.announcement(record)
        fields = {
            "request_id": record.request_id,
            "reply_to": record.request.reply_to,
            "body": encode(job),
        }
        return Letter(stream, fields)

    async def _bury(self, failure: Failure) -> None:
        request = failure.request
        logger.warning("request.failed", id=request.request_id, reason=failure.reason)
        metrics.DEAD_LETTERS.inc()
        letter = {
            "request_id": request.request_id,
            "reason": failure.reason,
        }
        await send(self._redis, keys.DEAD_LETTERS, letter, MAX_DEAD_LETTERS)
        await tell_failed(
            self._redis, request.request_id, request.reply_to, failure.reason
        )


async def tell_failed(
    redis: Redis, request_id: RequestId, reply_to: str, reason: str
) -> None:
    """Its client gets an error."""
    event = Failed(request_id=request_id, reason=reason)
    await post(redis, {keys.replies(reply_to): {"body": encode(event)}})
