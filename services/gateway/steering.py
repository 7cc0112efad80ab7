"""The shares of a pool follow its SLO: one gateway decides, all of them measure.

    each gateway ── Latencies ──> [stream] ──> the one that leads ── SteeredShares ──> the store
                                                        └── Decision ──> [stream]

Knows no model of latencies and no rule: the controller has them. It forgets with its
process, and the next leader learns anew from the shares in force.
"""

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass

import structlog
from redis.asyncio import Redis

from gateway.controller import Controller, Verdict
from gateway.errors import Unavailable
from gateway.latencies import Meter
from gateway.pool import PoolView
from gateway.splits import FIRST
from gateway.windows import Goals, Window, finite
from mesh import metrics
from mesh.connect import FAILED
from mesh.leader import Leadership
from mesh.streams import Entry, Tail, send
from mesh.timing import every, pause
from protocol import keys
from protocol.messages import (
    Decision,
    Shares,
    SharesBy,
    SteeredShares,
    decode_latencies,
)
from protocol.wire import MalformedMessage, encode

REPORTS_PER_WINDOW = 2
REPORTS_AT_ONCE = 1000
MAX_REPORTS = 1000  # in the stream
MAX_DECISIONS = 500  # that are kept
RETRY_SECONDS = 0.5

logger = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Steered:
    """A pool, and what this gateway sees of it."""

    view: PoolView
    meter: Meter

    @property
    def name(self) -> str:
        return self.view.name

    @property
    def shares(self) -> Shares | None:
        """In force; None where no phase has one: there is no pool, another one decodes
        for it, or its workers do both."""
        try:
            self.view.check()
        except Unavailable:
            return None
        return self.view.statuses[0].shares if self.view.is_divided else None

    @property
    def shares_by(self) -> SharesBy:
        return self.view.statuses[0].shares_by


@dataclass(slots=True)
class Collected:
    """What all gateways measured in the present window."""

    ttfts: list[float]
    tpots: list[float]
    num_prompt_tokens: int = 0
    num_begun: int = 0
    num_ended: int = 0

    @classmethod
    def nothing(cls) -> "Collected":
        return cls([], [])

    def add(self, entry: Entry) -> None:
        try:
            report = decode_latencies(entry.fields.get(b"body", b""))
        except MalformedMessage as error:
            logger.warning("latencies.malformed", reason=str(error))
            return
        self.ttfts.extend(report.ttfts)
        self.tpots.extend(report.tpots)
        self.num_prompt_tokens += report.num_prompt_tokens
        self.num_begun += report.num_begun
        self.num_ended += report.num_ended

    def window(self, shares: Shares, seconds: float) -> Window:
        """All of it; it took so long, under these shares."""
        load = self.num_prompt_tokens / seconds
        flow = self.num_begun, self.num_ended
        return Window(shares, self.ttfts, self.tpots, load, *flow)


class Steering:
    """One gateway's part in it."""

    def __init__(
        self,
        redis: Redis,
        pool: Steered,
        leadership: Leadership,
        goals: Goals,
        window_seconds: float,
    ) -> None:
        self._redis = redis
        self._pool = pool
        self._leadership = leadership
        self._goals = goals
        self._window_seconds = window_seconds

    async def run(self, stopping: asyncio.Event) -> None:
        """Measure, and lead when nobody else does; survives the loss of Redis."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._report(stopping), name="latencies")
            while not stopping.is_set():
                try:
                    await self._lead(stopping)
                except FAILED as error:
                    logger.warning("steering.lost", error=type(error).__name__)
                await pause(RETRY_SECONDS, stopping)
        with suppress(*FAILED):
            await self._leadership.let_go()

    async def _report(self, stopping: asyncio.Event) -> None:
        seconds = self._window_seconds / REPORTS_PER_WINDOW
        async for _ in every(seconds, stopping):
            fields = {"body": encode(self._pool.meter.take())}
            stream = keys.latencies(self._pool.name)
            with suppress(*FAILED):  # then these are missing in a window
                await send(self._redis, stream, fields, MAX_REPORTS)

    async def _lead(self, stopping: asyncio.Event) -> None:
        """Decide window after window, while the lease is ours."""
        if not await self._leadership.hold():
            return
        logger.info("steering.leads", pool=self._pool.name)
        controller, clock = Controller(self._goals), asyncio.get_running_loop().time
        reports = Tail(self._redis, keys.latencies(self._pool.name))
        collected, began = Collected.nothing(), clock()
        while await self._leadership.hold() and not stopping.is_set():
            for entry in await reports.read(REPORTS_AT_ONCE):
                collected.add(entry)
            if (seconds := clock() - began) >= self._window_seconds:
                await self._decide(controller, collected, seconds)
                collected, began = Collected.nothing(), clock()

    async def _decide(
        self, controller: Controller, collected: Collected, seconds: float
    ) -> None:
        before = self._pool.shares
        if before is None:
            return
        window = collected.window(before, seconds)
        by = self._pool.shares_by
        match by:
            case "order":
                verdict = Verdict(before, "a person's order")
            case "queue":
                verdict = Verdict(FIRST, "begins")
            case "start" | "controller":
                verdict = controller.decide(window)
        if by == "queue" or verdict.shares != before:
            await self._order(verdict.shares)
        await self._tell(self._decision(window, verdict))

    async def _order(self, shares: Shares) -> None:
        """Not kept: a store that comes anew is told anew."""
        stream, fields = (
            keys.control(self._pool.name),
            {"body": encode(SteeredShares(shares=shares))},
        )
        await send(self._redis, stream, fields, keys.MAX_CONTROL_ENTRIES)

    def _decision(self, window: Window, verdict: Verdict) -> Decision:
        seen = window.at(self._goals.percentile)
        return Decision(
            at=time.time(),
            leader=self._leadership.name,
            before=window.shares,
            shares=verdict.shares,
            reason=verdict.reason,
            load=window.load,
            seen_ttft_seconds=seen.ttft,
            seen_tpot_seconds=seen.tpot,
            expected_ttft_seconds=finite(verdict.ttft),
            expected_tpot_seconds=finite(verdict.tpot),
        )

    async def _tell(self, decision: Decision) -> None:
        metrics.DECISIONS.labels(decision.reason).inc()
        logger.info("shares.decided", **decision.summary())
        stream = keys.decisions(self._pool.name)
        await send(self._redis, stream, {"body": encode(decision)}, MAX_DECISIONS)
