"""A host's cores and its workers of both phases, whose steps take whole cores.

As the real ones do (libs/engine/threads.py and cores.py, libs/worker/rest.py): a share
becomes threads, more of them for some steps where it is no whole number of cores; a step
begins when it has a core for each; who may have less than a core rests after each step.
A step of prompts computes on what is free, and pauses for streams that have a share.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bench.simulation.control import EVERYTHING, Shares
from bench.simulation.costs import Share
from bench.simulation.worker import Worker

CORE = 100  # what one core is, in percent
PROMPTS = 0  # the place of their phase in the shares


@dataclass(slots=True, eq=False)
class _Side:
    """A worker, and what it may take."""

    worker: Worker
    phase: int  # its place in the shares
    terms: tuple[bool, Shares] = field(default=(False, EVERYTHING))
    percent: int = 0  # of a core
    owed: float = 0.0  # percent times seconds, by the steps so far
    count: int = 0  # threads of the steps to come, or of those that are computed
    cores: int = 0  # on which these are computed; none in a pause
    since: float = 0.0  # on so many
    began: float = 0.0
    computed: float = 0.0  # seconds since then, without pauses
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

    @property
    def is_long(self) -> bool:
        """Prompts' steps are."""
        return self.phase == PROMPTS

    @property
    def goes_first(self) -> bool:
        """Who has a share is not kept waiting by a long step."""
        is_alone, shares = self.terms
        return not (self.is_long or is_alone) and shares[self.phase] < EVERYTHING[0]

    def compute_on(self, cores: int, now: float) -> None:
        """So many from now on. What its steps took until now counts against its part."""
        if self.cores:
            self.owed += (now - self.since) * (self.wanted - self.cores * CORE)
            self.computed += now - self.since
        self.cores, self.since = cores, now

    def begin(self, cores: int, now: float) -> None:
        self.began, self.computed = now, 0.0
        self.compute_on(cores, now)

    def end(self, now: float) -> None:
        """A pause was rest."""
        self.compute_on(0, now)
        self.count = 0
        self.rests_until = self.began + self.computed * (1 + self.rest)

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
        taken = sum(each.cores for each in self._computing if each.worker.is_busy)
        return taken == self._num_cores

    @property
    def _free(self) -> int:
        return self._num_cores - sum(side.cores for side in self._computing)

    def start(self, now: float) -> None:
        """Whoever has something to do begins, if there are cores; who goes on under
        other terms is called back after its step."""
        self._rest(now)
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
            if not self._could_have(side):
                self._ask(now)
            elif side.worker.take():
                self._begin(side, now)
        for side in self._computing:
            if side.is_long and self._free and side.cores < side.count:
                self._change(side, min(side.count, side.cores + self._free), now)

    def _could_have(self, side: _Side) -> int:
        """Cores for its next step; none, and it has to wait."""
        if side.is_long:
            return min(side.count, self._free)
        given = sum(each.cores for each in self._computing if each.is_long)
        free = self._free + (given if side.goes_first else 0)
        return side.count if side.count <= free else 0

    def _ask(self, now: float) -> None:
        """For the cores of who computes, after the step that has begun."""
        for side in self._computing:
            if side.began < now:
                side.worker.call(now)

    def _begin(self, side: _Side, now: float) -> None:
        cores = self._could_have(side)
        for long in self._computing:
            if cores > self._free:
                self._change(long, long.cores - (cores - self._free), now)
        side.begin(cores, now)
        side.worker.begin(now, self._share(cores), most=self._most(side))
        self._computing.append(side)
        self._line.remove(side)
        self._line.append(side)

    def _change(self, side: _Side, cores: int, now: float) -> None:
        """In the middle of a step."""
        side.compute_on(cores, now)
        if cores:
            side.worker.change(now, self._share(cores))
        else:
            side.worker.pause(now)

    def _share(self, cores: int) -> Share:
        part = cores / self._num_cores
        return Share(part, is_alone=part == 1)

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
