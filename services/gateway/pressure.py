"""How hard a pool is pressed, and under which of two settings less. Pure.

The pressure of a window is its latency over its SLO; 1 is the SLO. While a queue grows or
shrinks its level tells of the past: then the direction counts.
"""

from collections.abc import Sequence

# A change over all windows of a spell that is no noise, of their mean.
NOTABLE = 0.2
BETTER = 0.95  # times the other's: less is no difference


def mean(pressures: Sequence[float]) -> float:
    return sum(pressures) / len(pressures)


def slope(pressures: Sequence[float]) -> float:
    """What it grows by from window to window, by least squares."""
    middle = (len(pressures) - 1) / 2
    spread = sum((i - middle) ** 2 for i in range(len(pressures)))
    rising = sum((i - middle) * p for i, p in enumerate(pressures))
    return rising / spread if spread else 0.0


def direction(pressures: Sequence[float]) -> int:
    """1 while it grows, -1 while it shrinks, 0 while it does neither notably."""
    change = slope(pressures) * (len(pressures) - 1)
    if abs(change) <= NOTABLE * mean(pressures):
        return 0
    return 1 if change > 0 else -1


def is_better(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether the first of two spells was clearly the better one."""
    directions = direction(one), direction(other)
    if directions[0] != directions[1]:
        return directions[0] < directions[1]
    if directions[0]:
        return slope(one) < slope(other)
    return mean(one) < BETTER * mean(other)
