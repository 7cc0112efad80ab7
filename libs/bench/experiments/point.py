"""One system at one rate: asks, watches, and waits for nobody who has failed already."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import aiohttp

from bench.experiments.findings import Point
from bench.experiments.sampling import Watch
from bench.load import open_loop
from bench.measures import SLO, Outcome, measured
from bench.workload import Planned

TOO_LATE = "not answered while it could meet its SLOs"
Ask = Callable[[Planned], Awaitable[Outcome]]


@dataclass(frozen=True, slots=True)
class Arrivals:
    """What counts, after what only warms a system up: each by its own clock."""

    warm_up: Sequence[Planned]
    warm_up_seconds: float
    planned: Sequence[Planned]


def end_of(planned: Sequence[Planned], slo: SLO) -> float:
    """Seconds after which no answer still to come can meet its SLOs."""
    assert slo.ttft is not None
    assert slo.tpot is not None
    return max(
        (each.at + slo.ttft + slo.tpot * (each.max_tokens - 1) for each in planned),
        default=0.0,
    )


async def point(
    http: aiohttp.ClientSession,
    ask: Ask,
    arrivals: Arrivals,
    rate: float,
    slo: SLO,
) -> Point:
    """Until all are answered, or too late; then until the system is idle again."""
    watch, warm_up, planned = Watch(http), arrivals.warm_up, arrivals.planned
    async with asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(watch.run(), name="watch")
        warming = _until(end_of(warm_up, slo), ask)
        tasks.create_task(open_loop(warm_up, warming), name="warm-up")
        await asyncio.sleep(arrivals.warm_up_seconds)
        outcomes = await open_loop(planned, _until(end_of(planned, slo), ask))
        watching.cancel()
    decisions = await watch.decisions()
    await watch.until_idle()
    return Point(
        rate=rate,
        attainment=sum(map(slo.is_met, outcomes)) / max(1, len(outcomes)),
        run=measured(outcomes, slo),
        samples=tuple(watch.samples),
        decisions=tuple(decisions),
    )


def _until(seconds: float, ask: Ask) -> Ask:
    """Asks, but not beyond so many seconds from now."""
    end = asyncio.get_running_loop().time() + seconds

    async def asked(planned: Planned) -> Outcome:
        sent = time.monotonic()
        try:
            async with asyncio.timeout_at(end):
                return await ask(planned)
        except TimeoutError:
            return Outcome(sent, (), len(planned.prompt), 0, TOO_LATE)

    return asked
