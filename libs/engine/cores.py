"""Cores that a step has for itself, among processes that compute on the same ones.

Threads of one product wait for each other: with another process on one of their cores
they are all as slow as the one there. So a step first takes as many cores as it has
threads: byte i of a file that all have is core i, and who holds its lock computes there.
A lock ends with its process. A process that hangs keeps its locks: a wait for them has an
end, and is as long as steps have been seen to take.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from threading import Thread

FIRST_SECONDS = 1.0  # a step waits; who holds a core for longer may hang
LONGEST_SECONDS = 20.0
ROOM = 2  # for a step that takes longer than the one before
LINE = 1 << 20  # beyond the cores: the byte of who is next
AT_ONCE, WAITING = fcntl.LOCK_EX | fcntl.LOCK_NB, fcntl.LOCK_EX


class Cores:
    """The cores of this process."""

    def __init__(self, fd: int) -> None:
        """`fd` is of a file open for writing.

        This process may close no other descriptor of that file: its locks would end.
        """
        self._fd = fd
        self._cores = sorted(os.sched_getaffinity(0))
        self._next = LINE + self._cores[0]
        self._late: Thread | None = None  # in line for a step that went on without
        self.patience = FIRST_SECONDS  # how long a step waits

    @contextmanager
    def taken(self, count: int) -> Iterator[bool]:
        """Whether so many are ours while the block lasts; not if others keep them."""
        are_ours = self._take(min(count, len(self._cores)))
        try:
            yield are_ours
        finally:
            if are_ours:
                self._let_go()

    def _take(self, count: int) -> bool:
        """First come, first served. A wait in vain is not repeated while it may last."""
        if self._late and self._late.is_alive():
            return False
        return self._take_at_once(count) or self._take_in_turn(count)

    def _take_at_once(self, count: int) -> bool:
        if not self._lock(self._next, AT_ONCE):
            return False
        if len(self._take_free(count)) < count:
            self._let_go()
            return False
        self._unlock(self._next)
        return True

    def _take_in_turn(self, count: int) -> bool:
        """A thread waits, in the kernel and without end: who looks again and again is
        on a core that somebody computes on.
        """
        turn = Future[None]()
        thread = Thread(target=self._stand_in_line, args=(count, turn), daemon=True)
        thread.start()
        try:
            turn.result(self.patience)
        except TimeoutError:
            if turn.cancel():
                self._late = thread
                return False
        return True

    def _stand_in_line(self, count: int, turn: Future[None]) -> None:
        failure: OSError | None = None
        began = time.monotonic()
        try:
            self._wait_for(count)
        except OSError as error:
            failure = error
        if turn.set_running_or_notify_cancel():
            turn.set_exception(failure) if failure else turn.set_result(None)
        elif not failure:  # else the file was closed, and with it went the locks
            self._let_go()
            # It was no process that hangs: the next step of that length is waited for.
            self.patience = min(LONGEST_SECONDS, ROOM * (time.monotonic() - began))

    def _wait_for(self, count: int) -> None:
        self._lock(self._next, WAITING)
        free = self._take_free(count)
        others = [core for core in self._cores if core not in free]
        for core in others[: count - len(free)]:
            self._lock(core, WAITING)
        self._unlock(self._next)

    def _take_free(self, count: int) -> list[int]:
        """At most so many."""
        free = list[int]()
        for core in self._cores:
            if len(free) < count and self._lock(core, AT_ONCE):
                free.append(core)
        return free

    def _lock(self, byte: int, how: int) -> bool:
        try:
            fcntl.lockf(self._fd, how, 1, byte)
        except BlockingIOError:
            return False
        return True

    def _unlock(self, byte: int) -> None:
        fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, byte)

    def _let_go(self) -> None:
        """Of all that this process holds."""
        fcntl.lockf(self._fd, fcntl.LOCK_UN)
