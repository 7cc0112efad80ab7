"""What the gateway sends to its pools, in order. Knows nothing of answers.

One task sends everything: a Cancel never overtakes its job, and leaving a request takes
no time, whatever state its handler is in.
"""

import asyncio
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import structlog
from redis.asyncio import Redis

from gateway.errors import Unavailable
from mesh.connect import FAILED
from mesh.streams import Letter, send_all
from protocol import keys
from protocol.messages import Cancel, PrefillJob, RequestId
from protocol.wire import encode

MAX_WAITING = 4096
SUBMIT_SECONDS = 5.0
RETRY_SECONDS = 0.2

logger = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Waiting:
    """A letter, and who wants to know that it is gone."""

    letter: Letter
    sent: asyncio.Future[None] | None = None

    @property
    def is_wanted(self) -> bool:
        return self.sent is None or not self.sent.done()


class Outbox:
    """Letters to pools."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        # Of at most MAX_WAITING jobs and cancels, and the continuations of what is open.
        self._waiting: deque[Waiting] = deque()
        self._wake = asyncio.Event()
        self._is_closed = False

    async def submit(self, job: PrefillJob, pool: str) -> None:
        """Send a job; Unavailable if Redis does not take it."""
        if len(self._waiting) >= MAX_WAITING:
            raise Unavailable("Too many jobs wait for the message queue.")
        sent = asyncio.get_running_loop().create_future()
        self._put(Waiting(_letter(job, pool), sent))
        try:
            async with asyncio.timeout(SUBMIT_SECONDS):
                await sent
        except TimeoutError:
            raise Unavailable("The message queue does not answer.") from None

    def resubmit(self, job: PrefillJob, pool: str) -> None:
        """Send the continuation of a request, however long it takes."""
        self._put(Waiting(_letter(job, pool)))

    def cancel(self, request_id: RequestId, pools: Iterable[str]) -> None:
        """Tell pools to drop a request. Returns at once.

        With too many letters waiting it is not sent: the request ends by itself.
        """
        fields = {"body": encode(Cancel(request_id=request_id))}
        for pool in pools:
            if len(self._waiting) >= MAX_WAITING:
                logger.warning("outbox.full", request_id=request_id)
                return
            letter = Letter(
                keys.control(pool), fields, max_len=keys.MAX_CONTROL_ENTRIES
            )
            self._put(Waiting(letter))

    def close(self) -> None:
        """Send what waits, then end."""
        self._is_closed = True
        self._wake.set()

    def _put(self, waiting: Waiting) -> None:
        self._waiting.append(waiting)
        self._wake.set()

    async def deliver(self) -> None:
        """Send until closed. While Redis is away jobs are refused and cancels wait."""
        while not self._is_closed or self._waiting:
            await self._wake.wait()
            self._wake.clear()
            batch = [waiting for waiting in self._waiting if waiting.is_wanted]
            self._waiting.clear()
            if batch and not await self._send(batch):
                await asyncio.sleep(RETRY_SECONDS)

    async def _send(self, batch: list[Waiting]) -> bool:
        try:
            await send_all(self._redis, [waiting.letter for waiting in batch])
        except FAILED as error:
            logger.warning("outbox.not_sent", error=type(error).__name__)
            self._refuse(batch)
            return False
        for waiting in batch:
            if waiting.sent is not None and not waiting.sent.done():
                waiting.sent.set_result(None)
        return True

    def _refuse(self, batch: list[Waiting]) -> None:
        for waiting in batch:
            if waiting.sent is None:
                if not self._is_closed:
                    self._put(waiting)
            elif not waiting.sent.done():
                waiting.sent.set_exception(Unavailable("The message queue is away."))


def _letter(job: PrefillJob, pool: str) -> Letter:
    fields = {
        "request_id": job.request_id,
        "reply_to": job.reply_to,
        "body": encode(job),
    }
    return Letter(keys.prefill(pool), fields)
