"""What the model expects of other shares, from windows seen. Pure; decides nothing."""

from collections import deque
from typing import NamedTuple

from gateway.latency_model import Point, fit
from gateway.splits import share_of
from gateway.windows import Observed
from protocol.messages import Phase, Shares

MAX_WINDOWS = 24  # that are remembered
OTHER_KIND = 3.0  # times as much load, or as little: its latencies are another curve's

# What part of a latency does not depend on the share, until windows tell (paper, fig. 10).
CONSTANT_OF_TTFT = 0.1
CONSTANT_OF_TPOT = 0.4


class Expected(NamedTuple):
    """Seconds; None of what nothing was seen of."""

    ttft: float | None
    tpot: float | None


class Expectations:
    """Remembers windows of one pool."""

    def __init__(self) -> None:
        self._seen: deque[Observed] = deque(maxlen=MAX_WINDOWS)

    def remember(self, observed: Observed) -> None:
        self._seen.append(observed)

    def of(self, observed: Observed, shares: Shares) -> Expected:
        """TTFT and TPOT at those shares with the present load, by windows of its kind.

        The curves give ratios; they start from what was just seen.
        """
        windows = [w for w in self._seen if w is not observed and _is_like(w, observed)]
        windows.append(observed)
        ttfts = [
            Point(share_of(w.shares, "prefill"), w.load, w.ttft)
            for w in windows
            if w.ttft is not None
        ]
        tpots = [
            Point(share_of(w.shares, "decode"), 0.0, w.tpot)
            for w in windows
            if w.tpot is not None
        ]
        return Expected(
            _scaled(ttfts, CONSTANT_OF_TTFT, observed.ttft, shares, "prefill"),
            _scaled(tpots, CONSTANT_OF_TPOT, observed.tpot, shares, "decode"),
        )


def _is_like(one: Observed, other: Observed) -> bool:
    less, more = sorted((one.load, other.load))
    return more <= OTHER_KIND * less


def _scaled(
    points: list[Point],
    constant: float,
    seen: float | None,
    shares: Shares,
    phase: Phase,
) -> float | None:
    if seen is None:
        return None
    curve = fit(points, constant)
    latest = points[-1]
    now = curve(latest.share, latest.load)
    then = curve(share_of(shares, phase), latest.load)
    return seen * then / now if now > 0 else seen
