"""`tandem experiment paradigms`: systems one after another, each under the same load."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import aiohttp
from rich.console import Console
from rich.progress import Progress, TaskID

from bench.client import connected
from bench.experiments.findings import Findings, Measured, Point, Setting, as_table
from bench.experiments.loads import Load
from bench.experiments.meshes import serving
from bench.experiments.picture import draw
from bench.experiments.point import point
from bench.experiments.sweep import Endless, Ladder, Listed, highest_held, next_rung
from bench.experiments.systems import KINDS, System
from bench.experiments.unloaded import Unloaded, unloaded
from bench.measures import SLO, Outcome
from bench.workload import Planned
from mesh.errors import ConfigurationError

ANSWER_SECONDS = 600.0
NUM_UNLOADED = 9
FIRST_LOAD = 2.0  # requests at once that a first system is thought to hold


@dataclass(frozen=True, slots=True)
class Plan:
    """What a person asked for."""

    setting: Setting
    model: str  # of tandem up; empty: its default
    systems: Sequence[str]
    peers: Sequence[System]
    load: Load
    out: Path

    @property
    def ladder(self) -> Ladder:
        rates = self.setting.rates
        return Listed(rates) if rates else Endless()

    @property
    def options(self) -> list[str]:
        """Of each mesh."""
        model = ["--model", self.model] if self.model else []
        return [*model, *self.setting.options]

    @property
    def names(self) -> list[str]:
        return [*self.systems, *(peer.name for peer in self.peers)]

    def system(self, name: str, slo: SLO) -> System:
        for peer in self.peers:
            if peer.name == name:
                return peer
        return KINDS[name](self.setting.kv_blocks, slo)

    def path(self, suffix: str) -> Path:
        return self.out.with_name(self.out.name + suffix)


class Bar:
    """How far a person is told that it is."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task: TaskID = progress.add_task("", total=None)

    def begins(self, what: str, total: int | None = None) -> None:
        self._progress.reset(self._task, description=what, total=total)

    def advance(self) -> None:
        self._progress.advance(self._task)


@dataclass(frozen=True, slots=True)
class Asked:
    """One system that serves, and what it is asked."""

    system: System
    http: aiohttp.ClientSession
    ask: Callable[[Planned], Awaitable[Outcome]]
    plan: Plan
    bar: Bar

    async def alone(self) -> Unloaded:
        """Latencies of one request at a time, of each kind some."""
        self.bar.begins(f"{self.system.name}, alone", NUM_UNLOADED)
        seconds, seed = 4.0 * NUM_UNLOADED, f"{self.plan.setting.seed} alone"
        planned = self.plan.load.requests(1.0, seconds, seed)
        every = max(1, len(planned) // NUM_UNLOADED)
        return await unloaded(planned[::every][:NUM_UNLOADED], self._ask)

    async def at(self, rate: float, slo: SLO) -> Point:
        setting = self.plan.setting
        planned = self.plan.load.requests(rate, setting.seconds, setting.seed)
        self.bar.begins(f"{self.system.name} at {rate:g}/s", len(planned))
        return await point(self.http, self._ask, planned, rate, slo)

    async def _ask(self, planned: Planned) -> Outcome:
        outcome = await self.ask(planned)
        self.bar.advance()
        return outcome


def run(plan: Plan, *, as_json: bool) -> None:
    """Measure, draw and print; ConfigurationError when a system cannot be asked."""
    if not find_spec("matplotlib"):
        raise ConfigurationError("pictures need matplotlib: pip install matplotlib")
    plan.out.parent.mkdir(parents=True, exist_ok=True)
    errors = Console(stderr=True)
    with Progress(
        console=errors, transient=True, disable=not errors.is_terminal
    ) as progress:
        findings = asyncio.run(measure(plan, Bar(progress)))
    draw(findings, plan.path(".png"))
    if as_json:
        print(findings.model_dump_json(indent=2))
    else:
        Console().print(as_table(findings))
    errors.print(f"written to {plan.path('.json')} and .png", highlight=False)


async def measure(plan: Plan, bar: Bar) -> Findings:
    """Each system that is not among earlier findings; what was found is kept at once."""
    findings = earlier(plan)
    for name in plan.names:
        if findings is None or findings.of(name) is None:
            bar.begins(f"{name} starts")
            findings = await _add(plan, findings, name, bar)
            plan.path(".json").write_text(findings.model_dump_json() + "\n")
    if findings is None:
        raise ConfigurationError("no system to measure")
    return findings


def earlier(plan: Plan) -> Findings | None:
    """What --out has; ConfigurationError if it is of another setting."""
    path = plan.path(".json")
    if not path.exists():
        return None
    try:
        findings = Findings.model_validate_json(path.read_bytes())
    except ValueError:
        raise ConfigurationError(f"{path} is not of this experiment") from None
    if findings.setting != plan.setting:
        raise ConfigurationError(f"{path} has results of other settings; take --out")
    return findings


async def _add(plan: Plan, findings: Findings | None, name: str, bar: Bar) -> Findings:
    slo = findings.slo if findings else plan.setting.slo
    system = plan.system(name, slo)
    try:
        async with (
            serving(system, plan.options) as url,
            connected(url, "", ANSWER_SECONDS) as client,
            aiohttp.ClientSession(url) as http,
        ):
            asked = Asked(system, http, client.ask, plan, bar)
            return await _found(asked, findings)
    except (aiohttp.ClientError, TimeoutError) as error:
        reason = str(error) or type(error).__name__
        raise ConfigurationError(f"no answer from {name}: {reason}") from None


async def _found(asked: Asked, findings: Findings | None) -> Findings:
    """With this system's points, the one at the reference rate included."""
    alone = await asked.alone()
    findings = findings or Findings.begun(asked.plan.setting, alone)
    highest = findings.systems[0].highest if findings.systems else None
    points = await _sweep(asked, findings.slo, highest or FIRST_LOAD / alone.e2e)
    if not findings.systems:
        reference = _one_below(asked.plan.ladder, points)
        findings = findings.model_copy(update={"reference": reference})
    measured, rate = list(points.values()), findings.reference
    if rate and all(each.rate != rate for each in measured):
        measured.append(await asked.at(rate, findings.slo))
    return findings.also(
        Measured(
            name=asked.system.name,
            options=asked.system.options,
            alone=alone,
            points=tuple(measured),
        )
    )


async def _sweep(asked: Asked, slo: SLO, near: float) -> dict[int, Point]:
    """By the ladder's rungs."""
    ladder, points = asked.plan.ladder, dict[int, Point]()
    first = ladder.near(near)
    while (rung := next_rung(_attainments(points), first, ladder.leap)) is not None:
        rate = ladder.rate(rung)
        if rate is None:
            break
        points[rung] = await asked.at(rate, slo)
    return points


def _attainments(points: Mapping[int, Point]) -> dict[int, float]:
    return {rung: point.attainment for rung, point in points.items()}


def _one_below(ladder: Ladder, points: Mapping[int, Point]) -> float | None:
    """The rung below the highest that held; 90 % of its rate, where the ladder is ours."""
    rung = highest_held(_attainments(points))
    return None if rung is None else ladder.rate(rung - 1) or ladder.rate(rung)
