"""How many of its cores a process computes on. What they compute is not known here.

A share need not be a whole number of cores: 60 % of two are one thread in four turns of
five, and two threads in the fifth. The kernel's scheduler does the rest: while the shares
of all are no more than the cores, each thread finds a core of its own; beyond that they
compete. It needs no privilege, and any number of threads may follow any other; weights
(nice) can only be lowered without one.
"""

import os

import numba
import torch

CORE = 100  # what one core is, in percent
TURN = 4  # steps: another number of threads costs a fifth of a millisecond


class Threads:
    """Threads of the steps to come, for torch's operations and numba's kernels."""

    def __init__(self, limit: int) -> None:
        """At most `limit` threads; 0 for as many as this process has cores."""
        self._cores = len(os.sched_getaffinity(0))
        most: int = numba.config.NUMBA_NUM_THREADS
        self.limit = min(limit or self._cores, most)
        self._wanted = self.limit * CORE  # on average
        self._owed = 0  # by the turns so far
        self._num_left = 0  # steps of the present turn
        self.count = self.limit  # in the step that is computed

    @property
    def in_words(self) -> str:
        return f"{self._wanted / CORE:g} of {self._cores} cores"

    def share(self, percent: int, num_peers: int) -> None:
        """Together with so many processes take that much of the cores; at least one."""
        wanted = self._cores * percent // num_peers
        wanted = max(CORE, min(self.limit * CORE, wanted))
        if wanted != self._wanted:
            self._wanted, self._num_left = wanted, 0

    def apply(self) -> None:
        """For the step that the calling thread computes next."""
        if not self._num_left:
            self.count, self._owed = divmod(self._owed + self._wanted, CORE)
            self._num_left = TURN
        self._num_left -= 1
        numba.set_num_threads(self.count)  # numba keeps it for each thread apart
        if torch.get_num_threads() != self.count:
            torch.set_num_threads(self.count)
