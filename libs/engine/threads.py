"""How many of its cores a process computes on. What they compute is not known here."""

import os

import numba
import torch


class Threads:
    """Threads of the steps to come, for torch's operations and numba's kernels."""

    def __init__(self, limit: int) -> None:
        """At most `limit` threads; 0 for as many as this process has cores."""
        self._cores = len(os.sched_getaffinity(0))
        most: int = numba.config.NUMBA_NUM_THREADS
        self.limit = min(limit or self._cores, most)
        self.count = self.limit

    def share(self, num_computing: int) -> None:
        """So many processes compute on these cores: this one takes a fair part."""
        self.count = max(1, min(self.limit, self._cores // max(1, num_computing)))

    def apply(self) -> None:
        """For what the calling thread computes next."""
        numba.set_num_threads(self.count)  # numba keeps it for each thread apart
        if torch.get_num_threads() != self.count:
            torch.set_num_threads(self.count)
