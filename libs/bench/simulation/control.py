"""What a controller of shares sees and says: the seam for the real one and for fakes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from bench.measures import Outcome
from bench.simulation.sequence import Sequence as Request


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
    num_prompt_tokens: int  # of those
    ttfts: Sequence[float]  # of requests that still wait, how long by now
    tpots: Sequence[float]  # of requests that ended
    shares: Shares  # in force
    num_begun: int = 0  # requests, by their first token
    num_ended: int = 0  # of those


class Controller(Protocol):
    def decide(self, window: Window) -> Shares: ...


class Observations:
    """What happens in a pool, until somebody asks for it as a window."""

    def __init__(self) -> None:
        self._waiting: dict[int, float] = {}  # since when, by the request's number
        self._clear()

    def arrived(self, sequence: Request) -> None:
        self._waiting[sequence.number] = sequence.sent
        self._num_arrived += 1
        self._num_prompt_tokens += sequence.num_input

    def began(self, sequence: Request, now: float) -> None:
        """A token came; the first one counts."""
        if (sent := self._waiting.pop(sequence.number, None)) is not None:
            self._ttfts.append(now - sent)
            self._num_begun += 1

    def ended(self, outcome: Outcome) -> None:
        self._num_ended += bool(outcome.times)
        if outcome.tpot is not None:
            self._tpots.append(outcome.tpot)

    def window(self, now: float, seconds: float, shares: Shares) -> Window:
        """And the next one begins."""
        seen = Window(
            seconds=seconds,
            num_arrived=self._num_arrived,
            num_prompt_tokens=self._num_prompt_tokens,
            ttfts=[*self._ttfts, *(now - sent for sent in self._waiting.values())],
            tpots=self._tpots,
            shares=shares,
            num_begun=self._num_begun,
            num_ended=self._num_ended,
        )
        self._clear()
        return seen

    def _clear(self) -> None:
        self._num_arrived = self._num_prompt_tokens = 0
        self._num_begun = self._num_ended = 0
        self._ttfts: list[float] = []
        self._tpots: list[float] = []
