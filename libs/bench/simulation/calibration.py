"""Finds the figures of a device with which simulated loads take as long as real ones."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import exp, log
from statistics import fmean, median
from typing import NamedTuple

from bench.measures import Outcome
from bench.simulation.costs import Costs
from bench.simulation.design import Design
from bench.simulation.devices import Device
from bench.simulation.pool import Pool, closed_loop, open_loop
from bench.workload import Planned

FIRST_STEP = 0.5  # of a figure's logarithm
LAST_STEP = 0.02
WORTHWHILE = 0.995  # of an error: with less to gain steps become smaller


@dataclass(frozen=True, slots=True)
class Load:
    """Without clients each request comes at its time."""

    name: str
    planned: Sequence[Planned]
    num_clients: int = 0


class Times(NamedTuple):
    """Of a load, in seconds; no TPOT where every answer is one token."""

    ttft: float
    tpot: float | None

    def errors(self, measured: "Times") -> list[float]:
        """Logarithms of predicted by measured: the same for twice and for half."""
        errors = [log(self.ttft / measured.ttft)]
        if self.tpot is not None and measured.tpot is not None:
            errors.append(log(self.tpot / measured.tpot))
        return errors


def mean_of(outcomes: Sequence[Outcome]) -> Times:
    return _times(outcomes, fmean)


def middle_of(outcomes: Sequence[Outcome]) -> Times:
    """Medians: a machine's hiccups are no property of the device."""
    return _times(outcomes, median)


def typical_mean(rounds: Sequence[Sequence[Outcome]]) -> Times:
    """The median of the rounds' means: a round in which the machine was busy with
    something else says nothing.
    """
    means = [mean_of(each) for each in rounds]
    tpots = [each.tpot for each in means if each.tpot is not None]
    return Times(median(each.ttft for each in means), median(tpots) if tpots else None)


def _times(
    outcomes: Sequence[Outcome], middle: Callable[[list[float]], float]
) -> Times:
    tpots = [each.tpot for each in outcomes if each.tpot is not None]
    return Times(
        middle([each.ttft for each in outcomes]), middle(tpots) if tpots else None
    )


def predicted(design: Design, load: Load) -> list[Outcome]:
    pool = Pool(design)
    if load.num_clients:
        return closed_loop(pool, load.planned, load.num_clients)
    return open_loop([pool], load.planned)


def error(design: Design, seen: Sequence[tuple[Load, Times]]) -> float:
    """Mean square of all errors of medians."""
    errors = [
        each
        for load, times in seen
        for each in middle_of(predicted(design, load)).errors(times)
    ]
    return fmean(each * each for each in errors)


def on(design: Design, device: Device) -> Design:
    """The same on another device."""
    return replace(design, costs=Costs(design.costs.shape, device))


def fitted(
    device: Device, names: Sequence[str], error: Callable[[Device], float]
) -> Device:
    """With those figures changed until no small change is better: of one, or of two at a
    time, since what one has too much of another may lack.

    They stay positive: steps are factors. Where it begins matters little, but not nothing.
    """
    signs = (1, -1)
    moves = [{name: sign} for name in names for sign in signs]
    for one, other in combinations(names, 2):
        moves += [{one: first, other: then} for first in signs for then in signs]
    best, least, step = device, error(device), FIRST_STEP
    while step >= LAST_STEP:
        before = least
        for move in moves:
            while (found := error(moved := _moved(best, move, step))) < least:
                best, least = moved, found
        if least > WORTHWHILE * before:
            step /= 2
    return best


def _moved(device: Device, move: Mapping[str, int], step: float) -> Device:
    figures = {
        name: getattr(device, name) * exp(sign * step) for name, sign in move.items()
    }
    return device.model_copy(update=figures)
