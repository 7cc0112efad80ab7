"""What is to happen at which time; at the same time, in the order it was asked for."""

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count

NEVER = float("inf")
Act = Callable[[float], None]  # is told the time


class Timers:
    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Act]] = []
        self._order = count()

    @property
    def next(self) -> float:
        return self._heap[0][0] if self._heap else NEVER

    def at(self, time: float, act: Act) -> None:
        heappush(self._heap, (time, next(self._order), act))

    def run(self, now: float) -> None:
        """All that are due."""
        while self.next <= now:
            _, _, act = heappop(self._heap)
            act(now)
