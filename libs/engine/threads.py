"""How many of its cores a process computes on. What they compute is not known here.

A share need not be a whole number of cores: 60 % of two are one thread for four fifths of
the time, and two threads for the fifth. The kernel's scheduler does the rest: while the shares
of all are no more than the cores, each thread finds a core of its own; beyond that they
compete. It needs no privilege, and any number of threads may follow any other; weights
(nice) can only be lowered without one.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numba
import torch

CORE = 100  # what one core is, in percent
TURN_SECONDS = 0.01  # another number of threads costs a fifth of a millisecond


class Threads:
    """Threads of the steps to come, for torch's operations and numba's kernels."""

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        """At most `limit` threads; 0 for as many as this process has cores."""
        self._clock = clock
        self._cores = len(os.sched_getaffinity(0))
        most: int = numba.config.NUMBA_NUM_THREADS
        self.limit = min(limit or self._cores, most)
        self._wanted = self.limit * CORE  # on average
        self._owed = 0.0  # percent times seconds, by the steps so far
        self._left = 0.0  # seconds of the present turn
        self.count = self.limit  # in the step that is computed

    @property
    def in_words(self) -> str:
        return f"{self._wanted / CORE:g} of {self._cores} cores"

    def share(self, percent: int, num_peers: int) -> None:
        """Together with so many processes take that much of the cores; at least one."""
        wanted = self._cores * percent // num_peers
        wanted = max(CORE, min(self.limit * CORE, wanted))
        if wanted != self._wanted:
            self._wanted, self._left = wanted, 0.0

    def apply(self) -> None:
        """For the step that the calling thread computes next."""
        if self._left <= 0.0:
            self.count = self._wanted // CORE
            if self._owed > 0.0 and self._wanted % CORE:
                self.count += 1
            self._left = TURN_SECONDS
        numba.set_num_threads(self.count)  # numba keeps it for each thread apart
        if torch.get_num_threads() != self.count:
            torch.set_num_threads(self.count)

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Around a step: what it takes is counted against the share."""
        began = self._clock()
        try:
            yield
        finally:
            seconds = self._clock() - began
            self._left -= seconds
            self._owed += seconds * (self._wanted - self.count * CORE)
