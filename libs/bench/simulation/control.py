"""What a controller of shares sees and says: the seam for the real one and for fakes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from bench.measures import Outcome


class Shares(NamedTuple):
    """Percent of the device for each phase; together more than 100: they compete."""

    prefill: int
    decode: int


EVERYTHING = Shares(100, 100)


@dataclass(frozen=True, slots=True)
class Window:
    """What was observed since the last decision; times in seconds."""

    seconds: float
    num_arrived: int
    ttfts: Sequence[float]  # of requests whose first token came
    tpots: Sequence[float]  # of requests that ended
    shares: Shares  # in force

    @property
    def rate(self) -> float:
        return self.num_arrived / self.seconds


class Controller(Protocol):
    def decide(self, window: Window) -> Shares: ...


class Observations:
    """What happens in a pool, until somebody asks for it as a window."""

    def __init__(self) -> None:
        self._clear()

    def arrived(self) -> None:
        self._num_arrived += 1

    def began(self, ttft: float) -> None:
        self._ttfts.append(ttft)

    def ended(self, outcome: Outcome) -> None:
        if outcome.tpot is not None:
            self._tpots.append(outcome.tpot)

    def window(self, seconds: float, shares: Shares) -> Window:
        """And the next one begins."""
        seen = Window(seconds, self._num_arrived, self._ttfts, self._tpots, shares)
        self._clear()
        return seen

    def _clear(self) -> None:
        self._num_arrived = 0
        self._ttfts: list[float] = []
        self._tpots: list[float] = []
