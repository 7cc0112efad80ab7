"""What an experiment found: for programs as JSON, for people as a table."""

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
    first = findings.systems[0]
    table = Table("system", title=findings.title, title_justify="left")
    headings = ["highest rate", f"by {first.name}"]
    if findings.reference:
        at = f"at {findings.reference:g}/s"
        headings += [f"{at}: attainment", "goodput", "mean E2E, s"]
        headings += ["TTFT P90, ms", "P99", "TPOT P90, ms", "P99"]
    for heading in headings:
        table.add_column(heading, justify="right")
    for system in findings.systems:
        cells = [_shown(system.highest, "g"), _ratio(system.highest, first.highest)]
        if point := system.at(findings.reference):
            cells += [f"{point.attainment:.3f}", f"{point.run.goodput:.2f}"]
            cells += [_of(point.run.e2e_ms, "mean", 1000)]
            for times in (point.run.ttft_ms, point.run.tpot_ms):
                cells += [_of(times, "p90"), _of(times, "p99")]
        table.add_row(system.name, *cells)
    return table


def _of(times: Distribution | None, part: str, unit: float = 1) -> str:
    if times is None:
        return "-"
    return f"{getattr(times, part) / unit:.{0 if unit == 1 else 2}f}"


def _ratio(rate: float | None, base: float | None) -> str:
    return f"{rate / base:.2f}" if rate and base else "-"


def _shown(rate: float | None, form: str) -> str:
    return "none" if rate is None else f"{rate:{form}}/s"
