"""The gateway's mailbox: each event goes to the request that waits for it.

Knows nothing of HTTP or text.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import structlog

from gateway.errors import ApiError, RequestFailed
from mesh.connect import FAILED
from mesh.streams import Entry, Mailbox
from mesh.timing import pause
from protocol.messages import (
    Failed,
    FinishReason,
    RequestId,
    TokenEvent,
    TokenEvents,
    decode_reply,
)
from protocol.wire import MalformedMessage

MAX_ENTRIES = 256  # taken from the mailbox at once
RENEWAL_SECONDS = 1.0  # of the mailbox; it finds out so soon that Redis lost it
RETRY_SECONDS = 0.1

logger = structlog.get_logger()


class Arrival(NamedTuple):
    """All that came for a request since it last looked."""

    token_ids: list[int]
    finish_reason: FinishReason | None


class Inbox:
    """One request's tokens in order, each once.

    Holds at most the tokens that the request asked for, however slow its client is.
    """

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._num_taken = 0
        self._finish_reason: FinishReason | None = None
        self._error: ApiError | None = None
        self._has_news = False
        self._awaited: asyncio.Future[None] | None = None
        self.token_ids: list[int] = []  # all that came, in order
        self.logprobs: list[float] = []  # theirs, if they were asked for
        self.num_cached_tokens = 0
        self.pool = ""  # where the last of them came from
        self.has_ended = False  # the pool is done with the request

    def accept(self, event: TokenEvent) -> None:
        """Take what is new in the event; a missing token fails the request."""
        if self.has_ended or self._error is not None:
            return
        num_known = len(self.token_ids) - event.index
        if num_known < 0:
            self.fail(RequestFailed("Tokens of the answer were lost."))
            return
        new = event.token_ids[num_known:]
        if len(self.token_ids) + len(new) > self._max_tokens:
            self.fail(RequestFailed("The answer has more tokens than asked for."))
            return
        self.token_ids.extend(new)
        self.logprobs.extend(event.logprobs[num_known:])
        self.num_cached_tokens = max(self.num_cached_tokens, event.num_cached_tokens)
        if event.finish_reason and num_known <= len(event.token_ids):
            self._finish_reason = event.finish_reason
            self.has_ended = True
        if new or self.has_ended:
            self._wake()

    def fail(self, error: ApiError, *, has_ended: bool = False) -> None:
        """The request gets this error once it took the tokens before it."""
        if self.has_ended:
            return
        self.has_ended = has_ended
        self._error = error
        self._wake()

    async def take(self) -> Arrival:
        """Wait for news; raises the request's error."""
        if not self._has_news:
            self._awaited = asyncio.get_running_loop().create_future()
            await self._awaited
        self._has_news = self._error is not None
        token_ids = self.token_ids[self._num_taken :]
        self._num_taken += len(token_ids)
        if self._error is not None and not token_ids:
            raise self._error
        return Arrival(token_ids, self._finish_reason)

    def _wake(self) -> None:
        self._has_news = True
        if self._awaited is not None and not self._awaited.done():
            self._awaited.set_result(None)


class Replies:
    """Who waits for which events."""

    def __init__(self) -> None:
        self._open: dict[RequestId, Inbox] = {}
        self.can_hear = asyncio.Event()  # there is a mailbox

    @contextmanager
    def subscribe(self, request_id: RequestId, max_tokens: int) -> Iterator[Inbox]:
        """This request's events arrive in the inbox until the block is left."""
        inbox = self._open[request_id] = Inbox(max_tokens)
        try:
            yield inbox
        finally:
            del self._open[request_id]

    def dispatch(self, reply: TokenEvents | Failed) -> None:
        """Hand each event to its request; nobody waits for the others any more."""
        match reply:
            case TokenEvents(events=events, pool=pool):
                for event in events:
                    if inbox := self._open.get(event.request_id):
                        inbox.pool = pool
                        inbox.accept(event)
            case Failed(request_id=request_id, reason=reason):
                if inbox := self._open.get(request_id):
                    inbox.fail(RequestFailed(reason), has_ended=True)

    def fail_all(self, error: ApiError) -> None:
        for inbox in self._open.values():
            inbox.fail(error)

    async def read(
        self, mailbox: Mailbox, on_lost: Callable[[], None], stopping: asyncio.Event
    ) -> None:
        """Keep the mailbox open and empty it; survives the loss of Redis.

        `on_lost` is called when the mailbox was lost, and what was posted to it.
        """
        clock = asyncio.get_running_loop().time
        next_renewal = clock()
        # Cancelling is not enough to end this: Python 3.11's wait_for, which redis-py
        # uses, loses a cancellation that comes together with the answer.
        while not stopping.is_set():
            try:
                if clock() >= next_renewal:
                    await self._renew(mailbox, on_lost)
                    next_renewal = clock() + RENEWAL_SECONDS
                entries = await mailbox.read(MAX_ENTRIES)
            except FAILED as error:
                logger.warning("replies.lost", error=type(error).__name__)
                next_renewal = clock()  # Redis may come back without the mailbox
                await pause(RETRY_SECONDS, stopping)
                continue
            for entry in entries:
                self._open_entry(entry)

    async def _renew(self, mailbox: Mailbox, on_lost: Callable[[], None]) -> None:
        if not await mailbox.renew():
            logger.warning("mailbox.lost", now=mailbox.name)
            on_lost()
        self.can_hear.set()

    def _open_entry(self, entry: Entry) -> None:
        body = entry.fields.get(b"body")
        if body is None:
            return  # the mark that a new mailbox starts with
        try:
            self.dispatch(decode_reply(body))
        except MalformedMessage as error:
            logger.warning("replies.malformed", entry=entry.id, reason=str(error))
