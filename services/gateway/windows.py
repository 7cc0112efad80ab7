"""What clients saw of a pool in a while, beside what they shall see. Only data."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from protocol.messages import Shares


@dataclass(frozen=True, slots=True)
class Goals:
    """The SLOs; infinite where there is none."""

    ttft_seconds: float = math.inf
    tpot_seconds: float = math.inf
    percentile: int = 90  # at which both are meant

    def summary(self) -> dict[str, float | int | None]:
        """As `GET /v1/pools` shows it: null where there is none."""
        return {
            "ttft_seconds": finite(self.ttft_seconds),
            "tpot_seconds": finite(self.tpot_seconds),
            "percentile": self.percentile,
        }


@dataclass(frozen=True, slots=True)
class Window:
    """What was seen since the last decision."""

    shares: Shares  # that were in force
    ttfts: Sequence[float]  # seconds; of requests that still wait, how long by now
    tpots: Sequence[float]  # seconds, of each stream
    load: float  # prompt tokens per second
    num_begun: int = 0  # streams, by their first token
    num_ended: int = 0  # of such streams

    def at(self, percentile: int) -> "Observed":
        return Observed(
            self.shares,
            nearest_rank(self.ttfts, percentile),
            nearest_rank(self.tpots, percentile),
            self.load,
            nearest_rank(self.tpots, 50),
            (self.num_begun, self.num_ended),
        )


@dataclass(frozen=True, slots=True)
class Observed:
    """A window at the SLO's percentile."""

    shares: Shares
    ttft: float | None
    tpot: float | None
    load: float
    usual_tpot: float | None = None  # of most streams
    flow: tuple[int, int] = (0, 0)  # streams that began, and that ended

    def pressure(self, goals: Goals) -> float:
        """The latency that is nearest to its SLO, or farthest beyond it; 1 is the SLO."""
        ttft = (self.ttft or 0.0) / goals.ttft_seconds
        return max(ttft, (self.tpot or 0.0) / goals.tpot_seconds)


def finite(seconds: float | None) -> float | None:
    """None where it would grow without end."""
    return None if seconds is None or math.isinf(seconds) else seconds


def nearest_rank(values: Sequence[float], percentile: int) -> float | None:
    """The least value that is not below `percentile` percent of them; None of none."""
    if not values:
        return None
    rank = math.ceil(len(values) * percentile / 100)
    return sorted(values)[max(rank, 1) - 1]
