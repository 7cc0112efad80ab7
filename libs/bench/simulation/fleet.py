"""How much a pool can take under SLOs, and how many pools a load needs.

One pool is simulated, and a fleet is so many of them: a router that spreads arrivals
evenly leaves each pool a Poisson stream of its part of the rate. One that looks at load
does better, so the answer errs towards more pools (tests/bench/simulation/test_fleet.py
compares it with fleets that are simulated whole).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from statistics import fmean

from bench.measures import SLO, Outcome, Run, measured
from bench.simulation.costs import prompt
from bench.simulation.design import Design
from bench.simulation.loads import at_rate
from bench.simulation.pool import Pool, open_loop
from bench.workload import Planned

WANTED = 0.9  # of the requests meet their SLOs
PRECISION = 1.02  # of a rate
HOPELESS = 1e-3  # of the rate at which prompts alone would fill the chips
SECONDS = 40.0  # of arrivals, at least
FILLING_SECONDS = 10.0  # until a pool is as full as it will be: these do not count


@dataclass(frozen=True, slots=True)
class Answer:
    """So many pools of a design for a rate."""

    design: Design
    num_pools: int
    capacity: float  # requests per second of one pool
    rate: float  # that each gets
    attainment: float  # at that rate
    pool: Pool  # one of them, after its part of the load
    run: Run

    @property
    def num_chips(self) -> int:
        return self.num_pools * self.design.num_chips


def attainment(outcomes: Sequence[Outcome], slo: SLO) -> float:
    """The share of the requests that met their SLOs."""
    return sum(map(slo.is_met, outcomes)) / len(outcomes)


def at_work(
    design: Design, planned: Sequence[Planned], rate: float
) -> tuple[Pool, list[Outcome]]:
    """A pool after so many requests per second, and those that found it at work."""
    pool = Pool(design)
    outcomes = open_loop([pool], at_rate(planned, rate, SECONDS))
    return pool, [each for each in outcomes if each.sent >= FILLING_SECONDS]


def capacity(design: Design, planned: Sequence[Planned], slo: SLO) -> float:
    """The highest rate at which enough requests meet their SLOs; 0 when none is."""

    def is_enough(rate: float) -> bool:
        return attainment(at_work(design, planned, rate)[1], slo) >= WANTED

    least = most = guess = _bound(design, planned)
    while not is_enough(least):
        least, most = least / 2, least
        if least < HOPELESS * guess:
            return 0.0
    while least == most or is_enough(most):
        least, most = most, 2 * most
    while most / least > PRECISION:
        middle = (least * most) ** 0.5
        least, most = (middle, most) if is_enough(middle) else (least, middle)
    return least


def _bound(design: Design, planned: Sequence[Planned]) -> float:
    """Requests per second of prompts alone, one in a step."""
    num_input = round(fmean(len(each.prompt) for each in planned))
    seconds = design.costs.pace(prompt(num_input, 0)).first
    return design.num_prefill / seconds


def needed(
    design: Design, planned: Sequence[Planned], slo: SLO, rate: float
) -> Answer | None:
    """Pools for so many requests per second; None if no number will do."""
    most = capacity(design, planned, slo)
    if not most:
        return None
    num_pools = ceil(rate / most)
    pool, outcomes = at_work(design, planned, rate / num_pools)
    return Answer(
        design=design,
        num_pools=num_pools,
        capacity=most,
        rate=rate / num_pools,
        attainment=attainment(outcomes, slo),
        pool=pool,
        run=measured(outcomes, slo),
    )
