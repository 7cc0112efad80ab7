"""What clients of one pool see of it at the moment: TTFT and TPOT, while answers stream.

Requests that still wait, and streams that stand still, count with what they have waited by
now: an overloaded pool is seen before it answers. TPOT is a mean over tokens, so each of
its samples is of several: a gap beside somebody's prompt is none yet. Knows no Redis.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from protocol.messages import Latencies

MAX_SAMPLES = 1000  # of a kind, in one message
SAMPLE_TOKENS = 8  # of a sample of TPOT at least; an answer of fewer has one, too


class Measured(Protocol):
    """A request, as its client sees it; times are monotonic seconds."""

    @property
    def num_prompt_tokens(self) -> int: ...

    @property
    def arrived_at(self) -> float: ...

    first_token_at: float | None
    last_token_at: float | None

    @property
    def num_received(self) -> int:
        """Tokens."""
        ...


@dataclass(slots=True)
class _Mark:
    """What was counted of a request so far."""

    seconds: float = 0.0  # its latest counted token's time
    num_tokens: int = 0
    has_tpot: bool = False


class Meter:
    """The open requests, and what became of those that ended since the last look."""

    def __init__(
        self,
        ttft_limit: float = math.inf,
        tpot_limit: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Seconds beyond which waiting counts before it has ended."""
        self._ttft_limit = ttft_limit
        self._tpot_limit = tpot_limit
        self._clock = clock
        self._open: dict[Measured, _Mark] = {}
        self._clear()

    @contextmanager
    def measuring(self, request: Measured) -> Iterator[None]:
        """Count this request until the block is left: ended, or waited for no more."""
        self._open[request] = _Mark()
        self._num_prompt_tokens += request.num_prompt_tokens
        try:
            yield
        finally:
            self._count(request, mark := self._open.pop(request))
            self._num_ended += bool(mark.num_tokens)
            if not mark.has_tpot:
                self._count_tokens(request, mark)

    def take(self) -> Latencies:
        """All since the last time."""
        now = self._clock()
        for request, mark in self._open.items():
            self._count(request, mark)
            self._count_waiting(request, mark, now)
        taken = Latencies(
            ttfts=_some(self._ttfts),
            tpots=_some(self._tpots),
            num_prompt_tokens=self._num_prompt_tokens,
            num_begun=self._num_begun,
            num_ended=self._num_ended,
        )
        self._clear()
        return taken

    def _clear(self) -> None:
        self._ttfts: list[float] = []
        self._tpots: list[float] = []
        self._num_prompt_tokens = self._num_begun = self._num_ended = 0

    def _count(self, request: Measured, mark: _Mark) -> None:
        """What came since the mark."""
        if request.first_token_at is None or request.last_token_at is None:
            return
        if not mark.num_tokens:
            self._num_begun += 1
            self._ttfts.append(request.first_token_at - request.arrived_at)
            mark.seconds, mark.num_tokens = request.first_token_at, 1
        if request.num_received - mark.num_tokens >= SAMPLE_TOKENS:
            self._count_tokens(request, mark)

    def _count_tokens(self, request: Measured, mark: _Mark) -> None:
        new = request.num_received - mark.num_tokens
        if request.last_token_at is None or not new:
            return
        self._tpots.append((request.last_token_at - mark.seconds) / new)
        mark.seconds, mark.num_tokens = request.last_token_at, request.num_received
        mark.has_tpot = True

    def _count_waiting(self, request: Measured, mark: _Mark, now: float) -> None:
        if not mark.num_tokens:
            if now - request.arrived_at > self._ttft_limit:
                self._ttfts.append(now - request.arrived_at)
        elif (least := (now - mark.seconds) / SAMPLE_TOKENS) > self._tpot_limit:
            self._tpots.append(least)  # even if all of a sample came now


def _some(samples: list[float]) -> tuple[float, ...]:
    """All of them, or evenly chosen ones of too many."""
    stride = -(-len(samples) // MAX_SAMPLES) or 1
    return tuple(samples[::stride])
