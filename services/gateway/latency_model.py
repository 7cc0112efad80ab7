"""How latencies follow the shares: the paper's two curves, refitted from windows seen.

    TTFT(x) = a / (x - λ) + b        TPOT(y) = a / y + b

with x and y the shares of the two phases, so scaled that they are 1 together (semi-PD,
arXiv 2504.19867, section 5). λ is the part of the machine that arriving prompts keep busy:
c * load, with the load of each window, so that a curve stays true as the load changes.
Knows no phase and decides nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

FORGETTING = 0.85  # a window's weight, for each that came after it
# Of the guess that holds until windows with several shares were seen, and tames noise.
GUESS_WEIGHT = 0.2
GUESSED_AT = 0.5, 2.0  # times the latest share
MOST_BUSY = 0.9  # of a share, that prompts may keep busy in any window of a fit
NUM_BUSY = 10  # values of c that are tried


@dataclass(frozen=True, slots=True)
class Point:
    """What was seen in one window."""

    share: float  # of the phase, 0 to 1
    load: float  # of any unit; 0 where it does not matter
    seconds: float


@dataclass(frozen=True, slots=True)
class Curve:
    """Latency in seconds, at any share and load."""

    a: float
    b: float
    c: float = 0.0

    def __call__(self, share: float, load: float) -> float:
        free = share - self.c * load
        return self.a / free + self.b if free > 0 else math.inf


def fit(points: Sequence[Point], constant: float) -> Curve:
    """The curve that is nearest to the points, of which the last is the latest.

    Least squares, a and b not below zero, old points weighing less. A guess through the
    latest point pulls it softly: that `constant` of the latency, 0 to 1, would not change
    with the share. So one point is enough, and equal ones do no harm.
    """
    latest = points[-1]
    ages = range(len(points) - 1, -1, -1)
    weighted = [(p, FORGETTING**age) for p, age in zip(points, ages, strict=True)]
    for factor in GUESSED_AT:
        seconds = latest.seconds * (constant + (1 - constant) / factor)
        guess = Point(latest.share * factor, latest.load * factor, seconds)
        weighted.append((guess, GUESS_WEIGHT))
    most = min((p.share / p.load for p in points if p.load > 0), default=0.0)
    candidates = {k / NUM_BUSY * MOST_BUSY * most for k in range(NUM_BUSY + 1)}
    fitted = [_line(weighted, c) for c in sorted(candidates)]
    return min(fitted, key=lambda curve: _error(weighted, curve))


def _line(points: Sequence[tuple[Point, float]], c: float) -> Curve:
    """a and b for this c: a line through u = 1 / (share - c * load)."""
    rows = [(1 / (p.share - c * p.load), p.seconds, w) for p, w in points]
    total = sum(w for _, _, w in rows)
    mean_u = sum(w * u for u, _, w in rows) / total
    mean_t = sum(w * t for _, t, w in rows) / total
    spread = sum(w * (u - mean_u) ** 2 for u, _, w in rows)
    together = sum(w * (u - mean_u) * (t - mean_t) for u, t, w in rows)
    a = max(0.0, together / spread)
    b = mean_t - a * mean_u
    if b < 0:
        a = sum(w * u * t for u, t, w in rows) / sum(w * u * u for u, _, w in rows)
        b = 0.0
    return Curve(a, b, c)


def _error(points: Sequence[tuple[Point, float]], curve: Curve) -> float:
    return sum(w * (curve(p.share, p.load) - p.seconds) ** 2 for p, w in points)
