"""What an experiment found: for programs as JSON, for people as a table."""

from collections.abc import Callable

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


class Measured(BaseModel, frozen=True):
    """A system, and its points in the order in which they were measured."""

    name: str
    options: tuple[str, ...]  # of tandem up
    alone: Unloaded
    points: tuple[Point, ...]

    @property
    def highest(self) -> float | None:
        """The highest rate at which enough requests met their SLOs."""
        held = [each.rate for each in self.points if each.attainment >= WANTED]
        return max(held, default=None)

    def at(self, rate: float | None) -> Point | None:
        return next((each for each in self.points if each.rate == rate), None)


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

    @property
    def slo(self) -> SLO:
        """As far as it was given."""
        return SLO(self.ttft_slo, self.tpot_slo)


class Findings(BaseModel, frozen=True):
    """Of all systems so far. The first is what the others are compared with."""

    setting: Setting
    ttft_slo: float  # seconds, in force
    tpot_slo: float
    reference: float | None = None  # one rung below the first system's highest rate
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

    def also(self, system: Measured) -> "Findings":
        return self.model_copy(update={"systems": (*self.systems, system)})

    @property
    def title(self) -> str:
        return (
            f"{self.setting.model}, {self.setting.load}, {self.setting.seconds:g} s of "
            f"arrivals; SLOs: TTFT {1000 * self.ttft_slo:.0f} ms, TPOT "
            f"{1000 * self.tpot_slo:.0f} ms"
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
    points = [system.at(at) for system in findings.systems]
    for name, (value, form) in FIGURES.items() if at else ():
        cells = [_shown(value(point) if point else None, form) for point in points]
        table.add_row(f"at {at:g}/s: {name}", *cells)
    return table


def time_of(name: str, part: str) -> Callable[[Point], float | None]:
    """In milliseconds; None where nothing was answered."""

    def value(point: Point) -> float | None:
        times: Distribution | None = getattr(point.run, name)
        return None if times is None else float(getattr(times, part))

    return value


FIGURES: dict[str, tuple[Callable[[Point], float | None], str]] = {
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
