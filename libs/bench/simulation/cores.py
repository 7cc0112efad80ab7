"""A host's cores and its workers of both phases, whose steps take whole cores.

As the real ones do (libs/engine/threads.py and cores.py, libs/worker/rest.py): a share
becomes threads, more of them for some steps where it is no whole number of cores; a step
begins when it has a core for each; who may have less than a core rests after each step.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bench.simulation.control import EVERYTHING, Shares
from bench.simulation.costs import Share
from bench.simulation.worker import Worker

CORE = 100  # what one core is, in percent


@dataclass(slots=True, eq=False)
class _Side:
    """A worker, and what it may take."""

    worker: Worker
    phase: int  # its place in the shares
    terms: tuple[bool, Shares] = field(default=(False, EVERYTHING))
    percent: int = 0  # of a core
    owed: float = 0.0  # percent times seconds, by the steps so far
    count: int = 0  # threads of the steps to come, or of those that are computed
    began: float = 0.0
    rests_until: float = 0.0

    def agree(self, is_alone: bool, shares: Shares, num_cores: int) -> None:
        """The part that it has from its next step on."""
        terms = (is_alone, shares)
        if terms != self.terms:
            self.terms, self.count = terms, 0
        share = EVERYTHING[0] if is_alone else shares[self.phase]
        self.percent = num_cores * share
        if not self.count:
            is_more = self.owed > 0.0 and self.wanted % CORE
            self.count = self.wanted // CORE + (1 if is_more else 0)

    def end(self, now: float) -> None:
        """What its steps took counts against its part."""
        self.owed += (now - self.began) * (self.wanted - self.count * CORE)
        self.count = 0
        self.rests_until = now + self.rest * (now - self.began)

    @property
    def wanted(self) -> int:
        """Percent of a core; a step has one thread at least."""
        return max(CORE, self.percent)

    @property
    def rest(self) -> float:
        """After a step that took one second."""
        return max(0.0, CORE / self.percent - 1)


class Cores:
    """Who takes their turn next is who began least recently."""

    def __init__(
        self,
        workers: Sequence[Worker],
        shares: Shares,
        num_cores: int,
        wake: Callable[[float], None],
    ) -> None:
        """`wake` lets `start` be called at that time."""
        assert len(workers) == len(shares), "a worker of each phase"
        self.workers = workers
        self.shares = shares
        self._num_cores = num_cores
        self._wake = wake
        self._line = deque(_Side(each, phase) for phase, each in enumerate(workers))
        self._computing = list[_Side]()

    @property
    def is_full(self) -> bool:
        taken = sum(each.count for each in self._computing if each.worker.is_busy)
        return taken == self._num_cores

    def start(self, now: float) -> None:
        """Whoever has something to do begins, if there are cores; who goes on under
        other terms is called back after its step."""
        self._rest(now)
        free = self._num_cores - sum(side.count for side in self._computing)
        for side in tuple(self._line):
            is_alone = not self._other(side).worker.has_sequences
            if side in self._computing:
                side.worker.limit()
                if side.terms != (is_alone, self.shares):
                    side.worker.call(now)
                continue
            side.agree(is_alone, self.shares, self._num_cores)
            if now < side.rests_until:
                continue
            if side.count > free:
                self._ask(now)
            elif side.worker.take():
                free -= side.count
                self._begin(side, now)

    def _ask(self, now: float) -> None:
        """For the cores of who computes, after the step that has begun."""
        for side in self._computing:
            if side.began < now:
                side.worker.call(now)

    def _begin(self, side: _Side, now: float) -> None:
        part = side.count / self._num_cores
        side.worker.begin(now, Share(part, is_alone=part == 1), most=self._most(side))
        side.began = now
        self._computing.append(side)
        self._line.remove(side)
        self._line.append(side)

    def _most(self, side: _Side) -> int | None:
        """Steps until the cores or the number of threads are somebody's to ask for."""
        is_alone, shares = side.terms
        if is_alone:
            return None
        if sum(shares) > EVERYTHING[0] or side.rest or side.percent % CORE:
            return 1
        return None

    def _rest(self, now: float) -> None:
        """Who ended gives its cores back, and may rest."""
        for side in [each for each in self._computing if not each.worker.is_busy]:
            self._computing.remove(side)
            side.end(now)
            if side.rests_until > now:
                self._wake(side.rests_until)

    def _other(self, side: _Side) -> _Side:
        return next(each for each in self._line if each is not side)
