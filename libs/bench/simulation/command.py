"""`tandem simulate`: what pools of each kind make of a load, or how many it needs."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from bench.measures import SLO, Run, measured
from bench.report import TIMES
from bench.simulation.control import Shares
from bench.simulation.design import Design
from bench.simulation.fleet import Answer, attainment, needed
from bench.simulation.loads import Lengths, at_rate
from bench.simulation.pool import Pool, open_loop
from bench.workload import Planned, Scaling, poisson, replayed
from mesh.errors import ConfigurationError

# What is set at run time, and of which a plan takes the best: shares that a controller
# might come to, chips of each phase, and tokens of a step with prompts.
SPLITS = (Shares(100, 100), Shares(100, 50), Shares(100, 20), Shares(50, 100))
RATIOS = ((1, 1), (1, 2), (2, 1), (1, 3), (3, 1))
BUDGETS = (512, 1024, 2048)
ANY_TOKEN = 32_000  # of a vocabulary that nobody looks at


@dataclass(frozen=True, slots=True)
class Question:
    """A load and what is wanted of it."""

    lengths: Lengths
    num_requests: int
    rate: float  # requests per second; 0: a trace's own
    trace: Path | None
    scaling: Scaling
    seed: int
    slo: SLO

    def planned(self) -> list[Planned]:
        if self.trace:
            planned = replayed(
                self.trace, self.num_requests, ANY_TOKEN, self.scaling, self.seed
            )
            return at_rate(planned, self.rate) if self.rate else planned
        planned = self.lengths.planned(self.num_requests, self.seed)
        return poisson(planned, self.rate, self.seed)


class Figures(BaseModel, frozen=True):
    """Of a fleet of one kind. Rates of a plan are those of one of its pools."""

    kind: str
    pools: int
    chips: int
    shares: Shares | None  # semi
    chips_by_phase: tuple[int, int] | None  # disaggregated
    capacity: float | None  # of a pool, requests per second; of a plan
    attainment: float  # share of the requests that met their SLOs
    kv_usage: dict[str, float]  # the most of each kind of chip's memory
    preempted: int
    run: Run


def run(
    designs: Sequence[Design],
    question: Question,
    *,
    num_pools: int,
    plan_rate: float,
    as_json: bool,
) -> None:
    """Print a fleet's figures; with a plan's rate, those of the smallest that holds."""
    if plan_rate:
        found = _plan(designs, question, plan_rate)
    else:
        load = question.planned()
        found = [simulated(each, load, question.slo, num_pools) for each in designs]
    if as_json:
        print(json.dumps([each.model_dump() for each in found], indent=2))
    else:
        Console().print(as_table(found))


def _plan(designs: Sequence[Design], question: Question, rate: float) -> list[Figures]:
    """Of the kinds that can hold the SLOs at all; ConfigurationError if none can."""
    if question.slo == SLO():
        raise ConfigurationError("a plan needs --ttft-slo or --tpot-slo")
    load = replace(question, rate=question.rate or 1.0).planned()
    answers = [planned(design, load, question.slo, rate) for design in designs]
    if not any(answers):
        raise ConfigurationError("even a single request misses the SLOs")
    return [answer for answer in answers if answer]


def simulated(
    design: Design, load: Sequence[Planned], slo: SLO, num_pools: int
) -> Figures:
    pools = [Pool(design) for _ in range(num_pools)]
    outcomes = open_loop(pools, load)
    return _figures(
        design,
        pools,
        capacity=None,
        attained=attainment(outcomes, slo),
        run=measured(outcomes, slo),
    )


def planned(
    design: Design, load: Sequence[Planned], slo: SLO, rate: float
) -> Figures | None:
    """Of those that differ in what is set at run time, the one with the fewest chips;
    None if none of them holds the SLOs.
    """
    answers = [needed(each, load, slo, rate) for each in alternatives(design)]
    possible = [answer for answer in answers if answer]
    if not possible:
        return None
    return _answered(min(possible, key=lambda answer: answer.num_chips))


def alternatives(design: Design) -> list[Design]:
    match design.kind:
        case "semi":
            return [replace(design, shares=shares) for shares in SPLITS]
        case "disaggregated":
            return [
                replace(design, num_prefill=prefill, num_decode=decode)
                for prefill, decode in RATIOS
            ]
        case "fused":
            return [_with_budget(design, budget) for budget in BUDGETS]


def _with_budget(design: Design, budget: int) -> Design:
    rules = replace(design.decode, max_num_batched_tokens=budget)
    return replace(design, decode=rules)


def _answered(answer: Answer) -> Figures:
    found = _figures(
        answer.design,
        [answer.pool],
        capacity=answer.capacity,
        attained=answer.attainment,
        run=answer.run,
    )
    return found.model_copy(
        update={"pools": answer.num_pools, "chips": answer.num_chips}
    )


def _figures(
    design: Design,
    pools: Sequence[Pool],
    *,
    capacity: float | None,
    attained: float,
    run: Run,
) -> Figures:
    is_split = design.kind == "disaggregated"
    return Figures(
        kind=design.kind,
        pools=len(pools),
        chips=len(pools) * design.num_chips,
        shares=design.shares if design.kind == "semi" else None,
        chips_by_phase=(design.num_prefill, design.num_decode) if is_split else None,
        capacity=capacity,
        attainment=attained,
        kv_usage=_usage(pools),
        preempted=sum(pool.num_preempted for pool in pools),
        run=run,
    )


def _usage(pools: Sequence[Pool]) -> dict[str, float]:
    usage: dict[str, float] = {}
    for pool in pools:
        for name, room in pool.rooms:
            usage[name] = max(usage.get(name, 0.0), room.most / room.capacity)
    return usage


def as_table(found: Sequence[Figures]) -> Table:
    table = Table("", title_justify="left")
    for each in found:
        table.add_column(_title(each), justify="right")
    rows = {
        "pools": [str(each.pools) for each in found],
        "chips": [str(each.chips) for each in found],
        "a pool's capacity, requests/s": [
            "" if each.capacity is None else f"{each.capacity:.2f}" for each in found
        ],
        "met their SLOs": [f"{100 * each.attainment:.1f} %" for each in found],
        "KV usage at most": [
            ", ".join(
                f"{name} {100 * use:.0f} %" for name, use in each.kv_usage.items()
            )
            for each in found
        ],
        "preempted": [str(each.preempted) for each in found],
        "refused": [str(each.run.num_failed) for each in found],
        "requests/s": [f"{each.run.requests_per_second:.2f}" for each in found],
        "goodput, requests/s": [f"{each.run.goodput:.2f}" for each in found],
        "output tokens/s": [
            f"{each.run.output_tokens_per_second:.0f}" for each in found
        ],
    }
    for name, field in TIMES.items():
        for part in ("mean", "p90", "p99"):
            times = [getattr(each.run, field) for each in found]
            rows[f"{name} {part}, ms"] = [
                f"{getattr(time, part):.1f}" if time else "" for time in times
            ]
    for name, cells in rows.items():
        if any(cells):
            table.add_row(name, *cells)
    return table


def _title(figures: Figures) -> str:
    if figures.shares:
        return f"{figures.kind} {figures.shares.prefill}/{figures.shares.decode}"
    if figures.chips_by_phase:
        prefill, decode = figures.chips_by_phase
        return f"{figures.kind} {prefill}P{decode}D"
    return figures.kind
