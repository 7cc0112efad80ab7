"""Findings of systems that nobody measured."""

from bench.experiments.findings import Findings, Measured, Point, Setting
from bench.experiments.sampling import Decision, Sample
from bench.experiments.unloaded import Unloaded
from bench.measures import SLO, Outcome, measured

ALONE = Unloaded(ttft=0.1, tpot=0.01, e2e=0.5)
SETTING = Setting(
    model="demo",
    options=("--dtype", "bfloat16"),
    load="mixed",
    length_scale=1.0,
    seconds=10.0,
    seed=0,
    kv_blocks=64,
    ttft_slo=None,
    tpot_slo=None,
    rates=(),
)
DECISION = Decision(
    at=1.0,
    before="100/100",
    shares="60/40",
    reason="ttft fails",
    load=100.0,
    seen_ttft_seconds=1.0,
    seen_tpot_seconds=None,
    expected_ttft_seconds=0.5,
    expected_tpot_seconds=None,
)


def at(rate: float, attainment: float) -> Point:
    """A point of two requests; without attainment none was answered."""
    times = (0.2, 0.3, 0.4) if attainment else ()
    outcomes = [Outcome(float(sent), times, 8, len(times)) for sent in range(2)]
    return Point(
        rate=rate,
        attainment=attainment,
        run=measured(outcomes, SLO(1.0, 0.1)),
        samples=tuple(
            Sample(at=second, used={"default": 0.1 * second}, shares=(100 - second, 40))
            for second in range(3)
        )
        if attainment
        else (),
        decisions=(DECISION,) if attainment else (),
    )


def system(name: str, *points: Point) -> Measured:
    return Measured(
        name=name, options=("--kv-blocks", "64"), alone=ALONE, points=points
    )


def findings(*systems: Measured, reference: float | None) -> Findings:
    return Findings(
        setting=SETTING,
        ttft_slo=0.75,
        tpot_slo=0.1,
        reference=reference,
        systems=systems,
    )
