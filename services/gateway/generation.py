"""One request's life: its job goes out, its tokens come in, it ends. Knows no HTTP."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import structlog

from gateway.errors import ApiError, DeadlineExceeded, RequestFailed
from gateway.model import Model
from gateway.orders import Order
from gateway.outbox import Outbox
from gateway.output import Delta, Output
from gateway.replies import Inbox, Replies
from mesh import metrics
from mesh.streams import Mailbox
from protocol.messages import PrefillJob, RequestId

logger = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Arrived:
    """When a request came in: what its latencies are measured from."""

    clock: float  # monotonic seconds
    epoch: float  # seconds since the epoch, for other processes

    @classmethod
    def now(cls) -> "Arrived":
        return cls(time.monotonic(), time.time())

    @property
    def seconds_ago(self) -> float:
        return time.monotonic() - self.clock


@dataclass(frozen=True, slots=True)
class Pool:
    """Both directions of the conversation with a pool."""

    model: Model
    outbox: Outbox
    replies: Replies
    mailbox: Mailbox
    request_timeout_seconds: float
    _open: dict[RequestId, tuple[PrefillJob, Inbox]] = field(default_factory=dict)

    @asynccontextmanager
    async def generate(
        self, order: Order, arrived: Arrived
    ) -> AsyncIterator["Generation"]:
        """Submit the order; leaving early, for whatever reason, cancels it."""
        max_tokens = order.sampling.max_tokens
        with self.replies.subscribe(order.request_id, max_tokens) as inbox:
            output = Output(order, self.model.detokenizer(order.prompt_ids))
            generation = Generation(order, inbox, output, arrived)
            job = self._job(order, arrived)
            self._open[job.request_id] = job, inbox
            try:
                async with self._deadline(arrived):
                    logger.debug("request.submitted", request_id=job.request_id)
                    await self.outbox.submit(job)
                    yield generation
            except ApiError as error:
                generation.outcome = error.code
                raise
            finally:
                del self._open[job.request_id]
                if not inbox.has_ended:
                    self.outbox.cancel(order.request_id)
                generation.report()

    def resubmit_all(self) -> None:
        """The pool or the mailbox was lost: ask to go on where each client's answer is.

        Whatever a job of before still does, it is the same tokens, each taken once.
        """
        for before, inbox in list(self._open.values()):
            job = before.changed(reply_to=self.mailbox.name, attempt=before.attempt + 1)
            self._open[job.request_id] = job, inbox
            if not inbox.has_ended:
                continuation = job.changed(
                    token_ids=job.token_ids + tuple(inbox.token_ids),
                    logprobs=tuple(inbox.logprobs),
                )
                self.outbox.resubmit(continuation)
        logger.warning("requests.resubmitted", num_requests=len(self._open))

    @asynccontextmanager
    async def _deadline(self, arrived: Arrived) -> AsyncIterator[None]:
        seconds_left = self.request_timeout_seconds - arrived.seconds_ago
        try:
            async with asyncio.timeout(seconds_left):
                yield
        except TimeoutError:
            raise DeadlineExceeded("The answer took too long.") from None

    def _job(self, order: Order, arrived: Arrived) -> PrefillJob:
        return PrefillJob(
            request_id=order.request_id,
            token_ids=order.prompt_ids,
            num_prompt_tokens=len(order.prompt_ids),
            sampling=order.sampling,
            reply_to=self.mailbox.name,
            deadline=arrived.epoch + self.request_timeout_seconds,
            cache_salt=order.cache_salt,
        )


class Generation:
    """The output of one order while it comes in."""

    def __init__(
        self, order: Order, inbox: Inbox, output: Output, arrived: Arrived
    ) -> None:
        self.order = order
        self.outcome = "cancelled"  # unless it comes to an end
        self._inbox = inbox
        self._output = output
        self._arrived = arrived
        self._first_token_seconds: float | None = None

    @property
    def num_tokens(self) -> int:
        return self._output.num_tokens

    @property
    def num_cached_tokens(self) -> int:
        return self._inbox.num_cached_tokens

    @property
    def mean_logprob(self) -> float:
        """Per token of the answer, if they were asked for."""
        logprobs = self._inbox.logprobs[: self.num_tokens]
        return sum(logprobs) / max(1, len(logprobs))

    async def next(self) -> Delta:
        """What to tell the client next; the one with a finish reason is the last."""
        arrival = await self._inbox.take()
        if self._first_token_seconds is None:
            self._first_token_seconds = self._arrived.seconds_ago
            logger.debug("tokens.received", request_id=self.order.request_id)
        if arrival.finish_reason == "abort":
            raise RequestFailed("The pool gave up on the request.")
        delta = self._output.push(arrival.token_ids, arrival.finish_reason)
        if delta.finish_reason is not None:
            self.outcome = delta.finish_reason
        return delta

    def report(self) -> None:
        """What operators see of a request; never its text."""
        seconds = self._arrived.seconds_ago
        self._measure(seconds)
        logger.info(
            "request.finished",
            request_id=self.order.request_id,
            num_prompt_tokens=len(self.order.prompt_ids),
            num_output_tokens=self.num_tokens,
            finish_reason=self.outcome,
            seconds=round(seconds, 4),
        )

    def _measure(self, seconds: float) -> None:
        metrics.REQUESTS.labels(self.outcome).inc()
        metrics.PROMPT_TOKENS.inc(self.order.num_counted_prompt_tokens)
        metrics.GENERATION_TOKENS.inc(self.num_tokens)
        if self._first_token_seconds is None:
            return
        metrics.TIME_TO_FIRST_TOKEN.observe(self._first_token_seconds)
        metrics.E2E_REQUEST_LATENCY.observe(seconds)
        if self.num_tokens > 1:
            decoding = seconds - self._first_token_seconds
            metrics.TIME_PER_OUTPUT_TOKEN.observe(decoding / (self.num_tokens - 1))
