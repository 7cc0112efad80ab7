"""Whose turn it is, and at which rate, by what was found so far. Pure.

A machine is quicker at one hour than at another, so systems are compared in turn: each is
asked at a rate, then each once more, and only then at the next rate.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from bench.experiments.findings import Findings, Measured
from bench.experiments.sweep import Ladder, highest_held, next_rung

FIRST_LOAD = 2.0  # requests at once that a system is thought to hold


@dataclass(frozen=True, slots=True)
class Turn:
    """A system's next point."""

    name: str
    rate: float


def next_turn(findings: Findings, names: Sequence[str], ladder: Ladder) -> Turn | None:
    """Of systems that were asked alone. None once each has two neighbours on the ladder
    around its answer, and was asked at the reference rate.

    Every other round goes backwards, so that nobody is always the first.
    """
    systems = [system for name in names if (system := findings.of(name))]
    rounds, reference = findings.setting.rounds, findings.reference
    first = ladder.near(FIRST_LOAD / findings.systems[0].alone.e2e)
    wanted = [
        (system, rate)
        for system in systems
        if (rate := _wanted(system, rounds, ladder, first)) is not None
    ]
    if reference and all(rate == reference for _, rate in wanted):
        late = [each for each in systems if len(each.at(reference)) < rounds]
        wanted = [(system, reference) for system in late]
    if not wanted:
        return None
    rates = [rate for _, rate in wanted]
    begun = [rate for rate in rates if any(each.at(rate) for each in systems)]
    rate = min(begun or rates)
    asked = [(system.name, len(system.at(rate))) for system, at in wanted if at == rate]
    fewest = min(count for _, count in asked)
    due = [name for name, count in asked if count == fewest]
    return Turn(due[-1] if fewest % 2 else due[0], rate)


def _wanted(system: Measured, rounds: int, ladder: Ladder, first: int) -> float | None:
    """The rate that its search for the highest one needs next."""
    for rate in system.rates:
        if len(system.at(rate)) < rounds:
            return rate
    rung = next_rung(_attainments(system, ladder), first, ladder.leap)
    return None if rung is None else ladder.rate(rung)


def reference_of(system: Measured, ladder: Ladder) -> float | None:
    """The rung below the highest that held; 90 % of its rate, where the ladder is ours.

    The lowest rate that was asked, if none held.
    """
    rung = highest_held(_attainments(system, ladder))
    if rung is None:
        return min(system.rates, default=None)
    return ladder.rate(rung - 1) or ladder.rate(rung)


def _attainments(system: Measured, ladder: Ladder) -> dict[int, float]:
    return {ladder.rung(rate): system.attainment(rate) for rate in system.rates}
