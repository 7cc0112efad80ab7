"""How hard a pool is pressed, and under which of two settings less. Pure.

The pressure of a window is its latency over its SLO; 1 is the SLO. While a queue grows its
level tells of the past: what comes after is compared with where it was heading.
"""

import math
from collections.abc import Collection, Sequence
from itertools import pairwise

NOTABLE = 0.2  # of the mean: what grows by less over a spell is steady
STEADY = 0.5  # of the mean: what varies by less goes on as it is
BETTER = 0.95  # times the other's: less is no difference
CHANCE = 3.0  # deviations that are no chance any more
GAP = 1  # windows between two spells that count for neither


def mean(values: Collection[float]) -> float:
    return sum(values) / len(values)


def direction(pressures: Sequence[float]) -> int:
    """1 if each is more than the one before, -1 if each is less; 0 if they are steady."""
    if abs(pressures[-1] - pressures[0]) <= NOTABLE * mean(pressures):
        return 0
    steps = {later > earlier for earlier, later in pairwise(pressures)}
    if len(steps) > 1:
        return 0
    return 1 if steps == {True} else -1


def is_steady(pressures: Sequence[float]) -> bool:
    """Whether it neither jumps nor grows."""
    return max(pressures) - min(pressures) <= STEADY * mean(pressures)


def piles_up(flows: Collection[tuple[int, int]]) -> bool:
    """Whether more streams begin than end, in each of some windows and beyond chance.

    Flows are (begun, ended). Both are numbers of events that come at random, so their
    difference is one of the same kind: its deviation is the root of their sum.
    """
    begun, ended = (sum(counts) for counts in zip(*flows, strict=True))
    is_each = all(fewer < more for more, fewer in flows)
    return is_each and begun - ended > CHANCE * math.sqrt(begun + ended)


def forecast(pressures: Sequence[float], count: int) -> float:
    """The mean of so many windows to come, if all goes on as it did."""
    if direction(pressures) <= 0:
        return mean(pressures)
    step = (pressures[-1] - pressures[0]) / (len(pressures) - 1)
    return pressures[-1] + step * (GAP + (count + 1) / 2)


def is_better(later: Sequence[float], earlier: Sequence[float]) -> bool:
    """Whether a spell was clearly better than going on with the one before it."""
    return mean(later) < BETTER * forecast(earlier, len(later))
