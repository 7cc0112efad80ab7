"""`tandem experiment paradigms`: systems in turn, each under the same load."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
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
from bench.experiments.point import Arrivals, point
from bench.experiments.sweep import Endless, Ladder, Listed
from bench.experiments.systems import KINDS, System
from bench.experiments.turns import next_turn, reference_of
from bench.experiments.unloaded import Unloaded, unloaded
from bench.measures import SLO, Outcome
from bench.workload import Planned
from mesh.errors import ConfigurationError

ANSWER_SECONDS = 600.0
NUM_UNLOADED = 9


@dataclass(frozen=True, slots=True)
class Plan:
    """What a person asked for."""

    setting: Setting
    model: str  # of tandem up; empty: its default
    systems: Sequence[str]
    peers: Sequence[System]
    load: Load
    out: Path
    stem: Path | None = None  # of all meshes

    @property
    def ladder(self) -> Ladder:
        rates = self.setting.rates
        return Listed(rates) if rates else Endless()

    @property
    def options(self) -> list[str]:
        """Of each mesh."""
        model = ["--model", self.model] if self.model else []
        stem = ["--stem", str(self.stem)] if self.stem else []
        return [*model, *stem, *self.setting.options]

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

    def keep(self, findings: Findings) -> None:
        self.path(".json").write_text(findings.model_dump_json() + "\n")


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
        """The same requests in every round."""
        setting, requests = self.plan.setting, self.plan.load.requests
        before, seed = setting.warm_up_seconds, setting.seed
        warm_up = requests(rate, before, f"{seed} warm") if before else []
        planned = requests(rate, setting.seconds, seed)
        name = f"{self.system.name} at {rate:g}/s"
        self.bar.begins(name, len(warm_up) + len(planned))
        arrivals = Arrivals(warm_up, before, planned)
        return await point(self.http, self._ask, arrivals, rate, slo)

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
    """What earlier findings lack, in turn; what was found is kept at once."""
    findings = earlier(plan)
    for name in plan.names:
        if findings is None or findings.of(name) is None:
            findings = await _asked_alone(plan, findings, name, bar)
            plan.keep(findings)
    if findings is None:
        raise ConfigurationError("no system to measure")
    while turn := next_turn(findings, plan.names, plan.ladder):
        async with _asked(plan, turn.name, findings.slo, bar) as asked:
            point = await asked.at(turn.rate, findings.slo)
        findings = findings.with_point(turn.name, point)
        reference = reference_of(findings.systems[0], plan.ladder)
        findings = findings.model_copy(update={"reference": reference})
        plan.keep(findings)
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


async def _asked_alone(
    plan: Plan, findings: Findings | None, name: str, bar: Bar
) -> Findings:
    """With a system that was asked alone only; the first one's latencies are the SLOs."""
    slo = findings.slo if findings else plan.setting.slo
    async with _asked(plan, name, slo, bar) as asked:
        alone = await asked.alone()
    findings = findings or Findings.begun(plan.setting, alone)
    options = asked.system.options
    return findings.also(Measured(name=name, options=options, alone=alone, points=()))


@asynccontextmanager
async def _asked(plan: Plan, name: str, slo: SLO, bar: Bar) -> AsyncIterator[Asked]:
    """A system that serves while inside."""
    bar.begins(f"{name} starts")
    system = plan.system(name, slo)
    try:
        async with (
            serving(system, plan.options) as url,
            connected(url, "", ANSWER_SECONDS) as client,
            aiohttp.ClientSession(url) as http,
        ):
            yield Asked(system, http, client.ask, plan, bar)
    except (aiohttp.ClientError, TimeoutError) as error:
        reason = str(error) or type(error).__name__
        raise ConfigurationError(f"no answer from {name}: {reason}") from None
