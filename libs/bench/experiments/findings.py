"""What an experiment found: for programs as JSON, for people as a table."""

from collections.abc import Callable
from statistics import median

from pydantic import BaseModel
from rich.table import Table

from bench.experiments.sampling import Decision, Sample
from bench.experiments.sweep import WANTED
from bench.experiments.unloaded import Unloaded
from bench.measures import SLO, Distribution, Run


class Point(BaseModel, frozen=True):
    """A system at a rate. Latencies are of what was answered; who was not is a failure."""

    rate: float
    attainment: float  # of all requests, those that met both SLOs
    run: Run
    samples: tuple[Sample, ...] = ()
    decisions: tuple[Decision, ...] = ()


Value = Callable[[Point], float | None]


class Measured(BaseModel, frozen=True):
    """A system, and its points in the order in which they were measured."""

    name: str
    options: tuple[str, ...]  # of tandem up
    alone: Unloaded
    points: tuple[Point, ...]

    @property
    def rates(self) -> list[float]:
        """Those it was asked at, rising."""
        return sorted({each.rate for each in self.points})

    @property
    def highest(self) -> float | None:
        """The highest rate at which enough requests met their SLOs."""
        held = [rate for rate in self.rates if self.attainment(rate) >= WANTED]
        return max(held, default=None)

    def at(self, rate: float | None) -> list[Point]:
        """One of each round."""
        return [each for each in self.points if each.rate == rate]

    def attainment(self, rate: float) -> float:
        """Of a rate that it was asked at."""
        return median(each.attainment for each in self.at(rate))

    def figure(self, rate: float | None, value: Value) -> float | None:
        """The median of rounds; None if there was nothing to see in any."""
        known = [v for each in self.at(rate) if (v := value(each)) is not None]
        return median(known) if known else None


class Setting(BaseModel, frozen=True):
    """What was asked for; results of one setting belong together."""

    model: str
    options: tuple[str, ...]
    load: str
    length_scale: float
    seconds: float
    seed: int
    kv_blocks: int
    ttft_slo: float | None  # seconds; None: by the first system's unloaded latencies
    tpot_slo: float | None
    rates: tuple[float, ...]  # empty: searched
    rounds: int = 1  # points of each system at each rate
    warm_up_seconds: float = 0.0  # of arrivals before those that count

    @property
    def slo(self) -> SLO:
        """As far as it was given."""
        return SLO(self.ttft_slo, self.tpot_slo)


class Findings(BaseModel, frozen=True):
    """Of all systems so far. The first is what the others are compared with."""

    setting: Setting
    ttft_slo: float  # seconds, in force
    tpot_slo: float
    # One rung below the first system's highest rate; the lowest, if it holds none.
    reference: float | None = None
    systems: tuple[Measured, ...] = ()

    @classmethod
    def begun(cls, setting: Setting, alone: Unloaded) -> "Findings":
        """By what the first system does without load."""
        ttft_slo, tpot_slo = alone.slos(setting.slo)
        return cls(setting=setting, ttft_slo=ttft_slo, tpot_slo=tpot_slo)

    @property
    def slo(self) -> SLO:
        return SLO(self.ttft_slo, self.tpot_slo)

    def of(self, name: str) -> Measured | None:
        return next((each for each in self.systems if each.name == name), None)

    def with_point(self, name: str, point: Point) -> "Findings":
        """One more of a system that there is."""
        system = self.of(name)
        assert system
        points = (*system.points, point)
        return self.also(system.model_copy(update={"points": points}))

    def also(self, system: Measured) -> "Findings":
        """In the place of what there was of it."""
        names = [each.name for each in self.systems]
        if system.name not in names:
            return self.model_copy(update={"systems": (*self.systems, system)})
        systems = [
            system if each.name == system.name else each for each in self.systems
        ]
        return self.model_copy(update={"systems": tuple(systems)})

    @property
    def title(self) -> str:
        asked, rounds = self.setting, self.setting.rounds
        times = f"{asked.seconds:g} s of arrivals"
        if rounds > 1:
            times += f", {rounds} times in turn"
        return (
            f"{asked.model}, {asked.load}, {times}; SLOs: TTFT "
            f"{1000 * self.ttft_slo:.0f} ms, TPOT {1000 * self.tpot_slo:.0f} ms"
        )


def as_table(findings: Findings) -> Table:
    """A column for each system: the highest rate, and figures at the reference rate."""
    first, at = findings.systems[0], findings.reference
    table = Table("", title=findings.title, title_justify="left")
    for system in findings.systems:
        table.add_column(system.name, justify="right")
    highest = [system.highest for system in findings.systems]
    table.add_row("highest rate, requests/s", *(_shown(rate, "g") for rate in highest))
    ratios = [
        rate / first.highest if rate and first.highest else None for rate in highest
    ]
    table.add_row(f"by {first.name}", *(_shown(ratio, ".2f") for ratio in ratios))
    for name, (value, form) in FIGURES.items() if at else ():
        found = [system.figure(at, value) for system in findings.systems]
        table.add_row(f"at {at:g}/s: {name}", *(_shown(each, form) for each in found))
    return table


def time_of(name: str, part: str) -> Value:
    """In milliseconds; None where nothing was answered."""

    def value(point: Point) -> float | None:
        times: Distribution | None = getattr(point.run, name)
        return None if times is None else float(getattr(times, part))

    return value


FIGURES: dict[str, tuple[Value, str]] = {
    "attainment": (lambda point: point.attainment, ".3f"),
    "goodput, requests/s": (lambda point: point.run.goodput, ".2f"),
    "mean E2E, ms": (time_of("e2e_ms", "mean"), ".0f"),
    **{
        f"{name.upper()} {part.upper()}, ms": (time_of(f"{name}_ms", part), ".0f")
        for name in ("ttft", "tpot")
        for part in ("p50", "p90", "p99")
    },
}


def _shown(figure: float | None, form: str) -> str:
    return "-" if figure is None else format(figure, form)
