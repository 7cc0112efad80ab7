"""A device and the workers that compute on it, each on its share."""

from collections.abc import Sequence

from bench.simulation.control import EVERYTHING, Shares
from bench.simulation.costs import ALONE, Share
from bench.simulation.worker import Worker


class Chip:
    """One worker has all of it; two have their shares while both compute."""

    def __init__(self, workers: Sequence[Worker], shares: Shares = EVERYTHING) -> None:
        assert 1 <= len(workers) <= 2, "a worker, or one of each phase"
        self.workers = workers
        self.shares = shares
        self._seen: tuple[object, ...] = ()

    @property
    def is_full(self) -> bool:
        return any(worker.is_busy for worker in self.workers)

    def start(self, now: float) -> None:
        """Whoever idles and has something to do begins; who goes on is told its share."""
        taking = [w for w in self.workers if not w.is_busy and w.take()]
        busy = [worker for worker in self.workers if worker.is_busy]
        seen = (busy, self.shares)
        is_changed = bool(taking) or seen != self._seen
        self._seen = seen
        for worker, share in zip(busy, self._split(busy), strict=True):
            if worker in taking:
                worker.begin(now, share)
            else:
                worker.limit()
                if is_changed:
                    worker.change(now, share)

    def _split(self, busy: Sequence[Worker]) -> list[Share]:
        """What each has while both compute. Shares that are more than there is are caps:
        below them each has what the other leaves, and never less than its part of the
        sum (as semi-PD counts it, arXiv 2504.19867, Algorithm 1).
        """
        if len(busy) < 2:
            return [ALONE] * len(busy)
        total = sum(self.shares)
        if total <= 100:
            return [Share(share / 100, is_alone=False) for share in self.shares]
        caps = [share / 100 for share in self.shares]
        kept = [w.demand(cap) for w, cap in zip(busy, caps, strict=True)]
        return [
            Share(min(cap, max(100 * cap / total, 1 - other)), is_alone=False)
            for cap, other in zip(caps, reversed(kept), strict=True)
        ]
