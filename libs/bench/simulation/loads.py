"""Requests of which only lengths and times count: their prompts are zeros."""

import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import ceil, exp, log, sqrt

from bench.workload import Planned

LONGEST = 4  # times the mean


@dataclass(frozen=True, slots=True)
class Lengths:
    """Means in tokens; the spread is standard deviation by mean, of a log-normal."""

    num_input: int
    num_output: int
    spread: float = 0.0

    def planned(self, count: int, seed: object) -> list[Planned]:
        """All at time 0."""
        rng = random.Random(f"lengths {seed}")
        return [
            Planned(
                (0,) * self._drawn(rng, self.num_input),
                self._drawn(rng, self.num_output),
            )
            for _ in range(count)
        ]

    def _drawn(self, rng: random.Random, mean: int) -> int:
        variance = log(1 + self.spread**2)
        factor = exp(rng.gauss(-variance / 2, sqrt(variance)))
        return max(1, round(mean * min(factor, LONGEST)))


def at_rate(
    planned: Iterable[Planned], rate: float, seconds: float = 0.0
) -> list[Planned]:
    """The same requests in the same pattern, so many per second on average; again and
    again until so many seconds are filled.
    """
    ordered = sorted(planned, key=lambda each: each.at)
    length = len(ordered) / rate
    last = ordered[-1].at
    factor = length / last if last else 0.0
    return [
        replace(each, at=each.at * factor + number * length)
        for number in range(max(1, ceil(seconds / length)))
        for each in ordered
    ]
