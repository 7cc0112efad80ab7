"""How much of the machine each worker of a pool may take. Synchronous; knows no sequence.

The phases' shares count while both compute. Workers hear of their part with every answer
that they step by, and who computes is called to ask when that changes: so a change is in
force one step of each later, and one that starts later needs to be told nothing.
"""

import time
from collections import Counter
from collections.abc import Callable, Collection

import structlog

from kv.operations import Part
from kvstore.by_queue import ByQueue
from mesh import metrics
from protocol.messages import Phase, Shares, SharesBy

ALL = 100  # percent

logger = structlog.get_logger()


class Division:
    """Who computes, and the shares of the phases."""

    def __init__(
        self,
        first: Shares | None = None,
        call: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`first` are in force until others are ordered; None: they follow the queue.

        `call` lets a worker ask before its next step.
        """
        self._first = first
        self.call = call
        self._ordered: Shares | None = None
        self._steered: Shares | None = None
        self._by_queue = ByQueue()
        self._phases: dict[str, tuple[Phase, ...]] = {}  # of each worker
        self._computing: dict[str, tuple[Phase, ...]] = {}  # of those with sequences
        self._parts: dict[str, Part] = {}  # of who asked, until something changes
        self._untold: set[str] = set()  # who still computes by the shares of before
        self._changed_at = 0.0  # monotonic seconds
        _show(self.shares)

    @property
    def shares(self) -> Shares:
        """In force."""
        ordered = self._ordered or self._steered
        return ordered or self._first or self._by_queue.shares

    @property
    def shares_by(self) -> SharesBy:
        if self._ordered:
            return "order"
        if self._steered:
            return "controller"
        return "start" if self._first else "queue"

    def join(self, worker_id: str, phases: tuple[Phase, ...]) -> None:
        self._phases[worker_id] = phases

    def leave(self, worker_id: str) -> None:
        self.rests(worker_id)
        self._phases.pop(worker_id, None)

    def begins(self, worker_id: str) -> None:
        """It holds a sequence now."""
        if worker_id not in self._computing:
            self._computing[worker_id] = self._phases.get(worker_id, ())
            self._divide()

    def rests(self, worker_id: str) -> None:
        """It holds nothing any more."""
        self._computing.pop(worker_id, None)
        self._divide()
        self._tell(worker_id)

    def change(self, ordered: Shares | None) -> None:
        """In force for each worker from its next step on; None: as at the start."""
        before = self.shares
        self._ordered, self._steered = ordered, None
        self._follow(before)

    def steer(self, shares: Shares) -> None:
        """The controller's; a person's order stands until it is taken back."""
        before = self.shares
        if self._ordered is None:
            self._steered = shares
        self._follow(before)

    def _follow(self, before: Shares) -> None:
        if self.shares == before:
            return
        self._changed_at = time.monotonic()
        self._untold = {"", *self._computing}
        self._tell("")  # so that a change that nobody waits for is noted, too
        self._apply()

    def see_queue(self, missing: Collection[int], pile_tokens: int = 0) -> None:
        """What prompts workers have, as `ByQueue.see` is told."""
        before = self.shares
        self._by_queue.see(missing, pile_tokens)
        if self.shares != before:
            self._apply()

    def has_prompts(self, worker_id: str) -> bool:
        """Whether it computes them, and nothing else."""
        return self._phases.get(worker_id) == ("prefill",)

    def _apply(self) -> None:
        self._divide()
        _show(self.shares)

    def part(self, worker_id: str) -> Part:
        """What this worker may take for its next step, which it is being told now."""
        self._tell(worker_id)
        if worker_id not in self._parts:
            self._parts[worker_id] = self._part(worker_id)
        return self._parts[worker_id]

    def _divide(self) -> None:
        """Everybody's part may be another one now."""
        self._parts.clear()
        for worker_id in self._computing:
            self.call(worker_id)

    def _part(self, worker_id: str) -> Part:
        sides = Counter(self._computing.values())
        mine = self._computing.get(worker_id, ())
        if any(len(phases) != 1 for phases in sides):
            # Who does both phases is on no side: all have a fair part.
            return Part(ALL, max(1, sides.total()))
        percent = ALL
        if len(sides) > 1:
            percent = getattr(self.shares, mine[0]) if mine else ALL
        return Part(percent, max(1, sides[mine]))

    def _tell(self, worker_id: str) -> None:
        if worker_id not in self._untold:
            return
        self._untold.discard(worker_id)
        if not self._untold:
            seconds = time.monotonic() - self._changed_at
            metrics.SHARES_CHANGE_SECONDS.observe(seconds)
            logger.info(
                "shares.changed",
                prefill=self.shares.prefill,
                decode=self.shares.decode,
                seconds=round(seconds, 4),
            )


def _show(shares: Shares) -> None:
    metrics.SHARES.labels("prefill").set(shares.prefill)
    metrics.SHARES.labels("decode").set(shares.decode)
