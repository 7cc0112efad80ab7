"""How many of its cores a process computes on. What they compute is not known here.

A share need not be a whole number of cores: 60 % of two are one thread for four fifths of
the time, and two threads for the fifth. The kernel's scheduler does the rest: while the shares
of all are no more than the cores, each thread finds a core of its own; beyond that they
compete. It needs no privilege, and any number of threads may follow any other; weights
(nice) can only be lowered without one.

Beside other processes a step has the cores that it takes (`engine.cores`). A long one
takes what is free and changes its threads on its way; one with a share of its own goes first.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numba
import torch

from engine.cores import Cores
from engine.watch import NEVER, Watch

CORE = 100  # what one core is, in percent
EVERYTHING = 100  # percent of all cores
TURN_SECONDS = 0.01  # another number of threads costs a fifth of a millisecond


class Threads:
    """Threads of the steps to come, for torch's operations and numba's kernels."""

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        """At most `limit` threads; 0 for as many as this process has cores."""
        self._clock = clock
        self._num_cores = len(os.sched_getaffinity(0))
        self.cores: Cores | None = None  # that others take as well
        self._has_share = False
        self._owed = 0.0  # percent times seconds, by the steps so far
        self._left = 0.0  # seconds of the present turn
        self._began = 0.0  # computing on as many threads as now
        self.widen(limit)
        self.count = self._used = self.limit  # of a step, and at the moment

    def widen(self, limit: int) -> None:
        """As at the beginning, but with another limit."""
        most: int = numba.config.NUMBA_NUM_THREADS
        self.limit = min(limit or self._num_cores, most)
        self._wanted = self.limit * CORE  # on average

    def compete(self, cores: Cores) -> None:
        """From now on a step takes its cores among those of other processes."""
        self.cores = cores

    @property
    def in_words(self) -> str:
        return f"{self._wanted / CORE:g} of {self._num_cores} cores"

    def share(self, percent: int, num_peers: int) -> None:
        """Together with so many processes take that much of the cores; at least one."""
        wanted = self._num_cores * percent // num_peers
        wanted = max(CORE, min(self.limit * CORE, wanted))
        self._has_share = percent < EVERYTHING
        if wanted != self._wanted:
            self._wanted, self._left = wanted, 0.0

    @contextmanager
    def turn(self, *, is_long: bool = False) -> Iterator[None]:
        """Around a step of the calling thread: what it takes is counted.

        A long one computes on what is free, and pauses.
        """
        self._choose()
        with self._taken(is_long=is_long):
            self._begin()
            try:
                yield
            finally:
                self._end()

    @property
    def watch(self) -> Watch:
        """When a step pauses (see `engine.program.Pauses`)."""
        return self.cores.held.watch if self.cores else NEVER

    def pause(self) -> None:
        """Let others go first; then on, on as many cores as are free."""
        assert self.cores, "somebody to wait for"
        self._end()
        self.cores.pause()
        self._begin()

    def look(self) -> None:
        """Pause, if it is time to, between two operations of torch."""
        if self.cores and self.cores.are_called:
            self.pause()

    def _taken(self, *, is_long: bool) -> AbstractContextManager[object]:
        if not self.cores:
            return nullcontext()
        if is_long:
            return self.cores.shared(self.count)
        return self.cores.taken(self.count, goes_first=self._has_share)

    def _choose(self) -> None:
        """How many threads the next step has."""
        if self._left <= 0.0:
            self.count = self._wanted // CORE
            if self._owed > 0.0 and self._wanted % CORE:
                self.count += 1
            self._left = TURN_SECONDS

    def _begin(self) -> None:
        self._used = (
            min(self.count, self.cores.held.num_cores) if self.cores else self.count
        )
        numba.set_num_threads(self._used)  # numba keeps it for each thread apart
        if torch.get_num_threads() != self._used:
            torch.set_num_threads(self._used)
        self._began = self._clock()

    def _end(self) -> None:
        seconds = self._clock() - self._began
        self._left -= seconds
        self._owed += seconds * (self._wanted - self._used * CORE)
