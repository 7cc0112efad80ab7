"""One request's life: its job goes out, its tokens come in, it ends. Knows no HTTP."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

import structlog

from gateway.errors import ApiError, DeadlineExceeded, RequestFailed
from gateway.latencies import Meter
from gateway.model import Model
from gateway.orders import Order
from gateway.outbox import Outbox
from gateway.output import Delta, Output
from gateway.pool import PoolView
from gateway.pools import Pools, ready_first
from gateway.replies import Inbox, Replies
from gateway.router import Load, Router
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


@dataclass(slots=True)
class Open:
    """A request that is being answered, and where."""

    job: PrefillJob
    inbox: Inbox
    view: PoolView
    left: set[str] = field(default_factory=set)  # pools that may still compute it


@dataclass(frozen=True, slots=True)
class Requests:
    """Both directions of the conversation with the pools."""

    model: Model
    outbox: Outbox
    replies: Replies
    mailbox: Mailbox
    pools: Pools
    router: Router
    request_timeout_seconds: float
    meters: Mapping[str, Meter]  # by pool
    _open: dict[RequestId, Open] = field(default_factory=dict)

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
            try:
                with (
                    self._opened(job, inbox) as request,
                    self.meters[request.view.name].measuring(generation),
                ):
                    async with self._deadline(arrived):
                        logger.debug("request.submitted", request_id=job.request_id)
                        await self.outbox.submit(job, request.view.name)
                        yield generation
            except ApiError as error:
                generation.outcome = error.code
                raise
            finally:
                generation.report()

    @contextmanager
    def _opened(self, job: PrefillJob, inbox: Inbox) -> Iterator[Open]:
        """The request has a pool; afterwards no pool works on it any more."""
        request = Open(job, inbox, self._choose(job))
        self._open[job.request_id] = request
        try:
            yield request
        finally:
            del self._open[job.request_id]
            pools = request.left
            if not inbox.has_ended:
                pools = pools.union(request.view.names)
            self.outbox.cancel(job.request_id, pools)

    def resubmit_all(self) -> None:
        """The mailbox was lost: ask to go on where each client's answer is.

        Whatever a job of before still does, it is the same tokens, each taken once.
        """
        self._resubmit(list(self._open.values()))

    def resubmit_lost(self, view: PoolView, pool: str) -> None:
        """The memory of this pool was lost: whoever needs it goes on elsewhere, or there.

        What was handed over to the pool behind it is computed on.
        """
        if pool == view.name:
            self.router.forget(pool)
        lost = [
            request
            for request in self._open.values()
            if request.view is view
            and (pool != view.name or request.inbox.pool not in view.names[1:])
        ]
        for request in lost:
            request.view = self._choose(request.job)
            request.left |= {*view.names} - {*request.view.names}
        # Who waits for a pool that is away has its job in the stream already.
        self._resubmit([r for r in lost if r.view is not view or not view.gone])

    def _resubmit(self, requests: Sequence[Open]) -> None:
        for request in requests:
            inbox = request.inbox
            request.job = job = request.job.changed(
                reply_to=self.mailbox.name, attempt=request.job.attempt + 1
            )
            if not inbox.has_ended:
                continuation = job.changed(
                    token_ids=job.token_ids + tuple(inbox.token_ids),
                    logprobs=tuple(inbox.logprobs),
                )
                self.outbox.resubmit(continuation, request.view.name)
        if requests:
            logger.warning("requests.resubmitted", num_requests=len(requests))

    def _choose(self, job: PrefillJob) -> PoolView:
        """The pool that would answer first; Unavailable if there is none."""
        known = self.pools.known()
        num_tokens = len(job.token_ids) + job.sampling.max_tokens
        fitting = [view for view in known if num_tokens <= view.max_tokens]
        views = ready_first(fitting or known)
        if len(self.pools.views) == 1:
            return views[0]
        loads = self._loads()
        return self.router.route(job.token_ids, job.cache_salt, views, loads)

    def _loads(self) -> dict[str, Load]:
        open_, queued = Counter[str](), Counter[str]()
        for request in self._open.values():
            open_[request.view.name] += 1
            if not request.inbox.token_ids:
                queued[request.view.name] += len(request.job.token_ids)
        return {name: Load(count, queued[name]) for name, count in open_.items()}

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
        self.first_token_at: float | None = None  # monotonic seconds
        self.last_token_at: float | None = None

    @property
    def arrived_at(self) -> float:
        return self._arrived.clock

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.order.prompt_ids)

    @property
    def num_received(self) -> int:
        """Tokens that came, some of them perhaps not told yet."""
        return len(self._inbox.token_ids)

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
        if arrival.token_ids:
            self.last_token_at = time.monotonic()
        if self.first_token_at is None:
            self.first_token_at = time.monotonic()
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
        if self.first_token_at is None:
            return
        first_token_seconds = self.first_token_at - self.arrived_at
        metrics.TIME_TO_FIRST_TOKEN.observe(first_token_seconds)
        metrics.E2E_REQUEST_LATENCY.observe(seconds)
        if self.num_tokens > 1:
            decoding = seconds - first_token_seconds
            metrics.TIME_PER_OUTPUT_TOKEN.observe(decoding / (self.num_tokens - 1))
