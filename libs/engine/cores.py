"""Cores that a step has for itself, among processes that compute on the same ones.

Threads of one product wait for each other: with another process on one of their cores
they are all as slow as the one there. So a step first takes as many cores as it has
threads: byte i of a file that all have is core i, and who holds its lock computes there.
A lock ends with its process.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

LONGEST_SECONDS = 1.0  # a step waits; who holds a core for longer may hang
LOOK_SECONDS = 0.0003
LINE = 1 << 20  # beyond the cores: the byte of who is next


class Cores:
    """The cores of this process."""

    def __init__(self, fd: int) -> None:
        """`fd` is of a file open for writing.

        This process may close no other descriptor of that file: its locks would end.
        """
        self._fd = fd
        self._cores = sorted(os.sched_getaffinity(0))
        self._next = LINE + self._cores[0]
        self._is_patient = True

    @contextmanager
    def taken(self, count: int) -> Iterator[bool]:
        """Whether so many are ours while the block lasts; not if others keep them."""
        held = self._take(count)
        try:
            yield bool(held)
        finally:
            for core in held:
                self._unlock(core)

    def _take(self, count: int) -> list[int]:
        """First come, first served. None after a wait in vain, which is not repeated."""
        count = min(count, len(self._cores))
        deadline = time.monotonic() + LONGEST_SECONDS * self._is_patient
        is_next, held = False, list[int]()
        while not held:
            is_next = is_next or self._lock(self._next)
            if is_next:
                held = self._free(count)
            if not held:
                if time.monotonic() >= deadline:
                    break
                time.sleep(LOOK_SECONDS)
        if is_next:
            self._unlock(self._next)
        self._is_patient = bool(held)
        return held

    def _free(self, count: int) -> list[int]:
        """So many, or none."""
        held = list[int]()
        for core in self._cores:
            if self._lock(core):
                held.append(core)
            if len(held) == count:
                return held
        for core in held:
            self._unlock(core)
        return []

    def _lock(self, byte: int) -> bool:
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
        except BlockingIOError:
            return False
        return True

    def _unlock(self, byte: int) -> None:
        fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, byte)
