"""What a mesh does with how many containers of each phase.

At each point of a walk through their numbers a load is measured. From each point to the
next one containers come or go in the middle of that load: the pauses of its streams are
what it costs.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice, pairwise, takewhile
from typing import Protocol

from pydantic import BaseModel

from bench.benchmark import Plan, check, connected_to
from bench.experiments.containers import Project
from bench.experiments.counts import Counts
from bench.experiments.pauses import Pauses, paused
from bench.load import closed_loop, in_order
from bench.measures import Outcome, Run, measured
from bench.workload import Planned
from mesh.errors import ConfigurationError
from mesh.timing import every

SERVICES = tuple(Counts.model_fields)
READY_SECONDS = 300.0  # of a container: it may have kernels to compile
POLL_SECONDS = 0.2
UNDER_WAY_SECONDS = 1.0  # until then all streams have begun


class Point(BaseModel, frozen=True):
    """A load while nothing changed."""

    counts: Counts
    run: Run
    pauses: Pauses | None
    num_incomplete: int  # answers with fewer or more tokens than were asked for


class Move(BaseModel, frozen=True):
    """The same load while containers came or went; pauses are of that time."""

    before: Counts
    after: Counts
    seconds: float  # until all were ready, or gone
    run: Run
    pauses: Pauses | None
    num_incomplete: int


class Scaled(BaseModel, frozen=True):
    """All that was found."""

    workload: str
    points: tuple[Point, ...]
    moves: tuple[Move, ...]


class Asking(Protocol):
    """A client of the mesh: bench.client.Client."""

    async def ask(self, planned: Planned) -> Outcome: ...


@dataclass(frozen=True, slots=True)
class Load:
    """A plan's requests, as many as are needed, and what became of them."""

    client: Asking
    plan: Plan

    async def ask(self, name: str) -> list[Outcome]:
        """As many as planned, after a warm-up; each name has prompts of its own."""
        warming = islice(self._endless(f"{name}, warm-up"), self.plan.num_warmups)
        check(await closed_loop(warming, self.client.ask, self.plan.num_clients))
        return await self._drive(self.plan.requests(name))

    async def ask_until(self, is_over: asyncio.Event, name: str) -> list[Outcome]:
        """No more are drawn then; those that are open are answered."""
        planned = takewhile(lambda _: not is_over.is_set(), self._endless(name))
        return await self._drive(planned)

    async def _drive(self, planned: Iterable[Planned]) -> list[Outcome]:
        if self.plan.is_closed_loop:
            return await closed_loop(planned, self.client.ask, self.plan.num_clients)
        return await in_order(planned, self.client.ask)

    def _endless(self, name: str) -> Iterator[Planned]:
        start = 0.0
        for number in count():
            for planned in self.plan.requests(f"{name} {number}"):
                last = replace(planned, at=start + planned.at)
                yield last
            start = last.at


async def scaled(
    project: Project,
    url: str,
    plan: Plan,
    walk: Sequence[Counts],
    on_step: Callable[[str], None],
) -> Scaled:
    """Go from point to point; `on_step` is told what begins."""
    points, moves = [], []
    async with connected_to(url, plan) as client:
        load = Load(client, plan)
        on_step(f"starting {walk[0]}")
        await arrive(project, walk[0])
        on_step(f"measuring {walk[0]}")
        points.append(await _point(load, walk[0]))
        for before, after in pairwise(walk):
            on_step(f"from {before} to {after}")
            moves.append(await _move(project, load, before, after))
            on_step(f"measuring {after}")
            points.append(await _point(load, after))
    return Scaled(workload=str(plan), points=tuple(points), moves=tuple(moves))


async def arrive(
    project: Project, counts: Counts, ready_seconds: float = READY_SECONDS
) -> None:
    """Until as many containers are there, and ready."""
    late: list[str] = []
    await asyncio.to_thread(project.scale, counts.model_dump())
    try:
        async with asyncio.timeout(ready_seconds):
            async for _ in every(POLL_SECONDS, asyncio.Event()):
                late = await asyncio.to_thread(project.not_ready, SERVICES)
                if not late:
                    return
    except TimeoutError:
        raise ConfigurationError(
            f"not ready within {ready_seconds:g} s: {', '.join(late)}"
        ) from None


async def _point(load: Load, counts: Counts) -> Point:
    outcomes = await load.ask(f"at {counts}")
    return Point(
        counts=counts,
        run=measured(outcomes, load.plan.slo),
        pauses=paused(outcomes),
        num_incomplete=_num_incomplete(outcomes, load.plan),
    )


async def _move(project: Project, load: Load, before: Counts, after: Counts) -> Move:
    is_over = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        streams = tasks.create_task(
            load.ask_until(is_over, f"from {before} to {after}"), name="streams"
        )
        await asyncio.sleep(UNDER_WAY_SECONDS)
        began = time.monotonic()
        await arrive(project, after)
        ended = time.monotonic()
        is_over.set()
    outcomes = streams.result()
    return Move(
        before=before,
        after=after,
        seconds=ended - began,
        run=measured(outcomes, load.plan.slo),
        pauses=paused(outcomes, began, ended),
        num_incomplete=_num_incomplete(outcomes, load.plan),
    )


def _num_incomplete(outcomes: Iterable[Outcome], plan: Plan) -> int:
    return sum(
        each.num_output_tokens != plan.num_output
        for each in outcomes
        if each.is_answered
    )
