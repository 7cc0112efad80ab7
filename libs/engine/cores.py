"""Cores that a step has for itself, among processes that compute on the same ones.

Threads of one product wait for each other: with another process on one of their cores
they are all as slow as the one there. So a step first takes as many cores as it has
threads: byte i of a file that all have is core i, and who holds its lock computes there.
A lock ends with its process. A process that hangs keeps its locks: a wait for them has an
end, and is as long as steps have been seen to take.

A long step takes what is free, and watches (`engine.watch`): it pauses for who goes first,
and when a core that it misses is let go. Then it takes anew what is free.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from threading import Thread
from typing import NamedTuple

from engine.watch import ANY, ASKED, LET_GO, NEVER, Watch, counters_behind

FIRST_SECONDS = 1.0  # a step waits; who holds a core for longer may hang
LONGEST_SECONDS = 20.0
ROOM = 2  # for a step that takes longer than the one before
LINE = 1 << 20  # beyond the cores: the byte of who is next
AT_ONCE, WAITING = fcntl.LOCK_EX | fcntl.LOCK_NB, fcntl.LOCK_EX


class _Wish(NamedTuple):
    """What a step wants."""

    num_cores: int
    least: int  # so many, if no more are free
    goes_first: bool = False  # who watches pauses for it


class Held(NamedTuple):
    """What it has."""

    num_cores: int
    are_ours: bool  # else others keep them, and it goes on all the same
    watch: Watch  # when to let them go, for a step that pauses


class _Next(NamedTuple):
    """Who is next in line: no more cores are taken by others."""

    mine: list[int]  # cores
    asked: int  # what was counted until then
    let_go: int


class Cores:
    """The cores of this process."""

    def __init__(self, fd: int) -> None:
        """`fd` is of the host's blocks, open for writing.

        This process may close no other descriptor of that file: its locks would end.
        """
        self._fd = fd
        self._counters = counters_behind(fd)
        self._cores = sorted(os.sched_getaffinity(0))
        self._next = LINE + self._cores[0]
        self._late: Thread | None = None  # in line for a step that went on without
        self.patience = FIRST_SECONDS  # how long a step waits
        self._wish = _Wish(0, 0)
        self.held = Held(0, are_ours=False, watch=NEVER)

    @contextmanager
    def taken(self, count: int, *, goes_first: bool = False) -> Iterator[bool]:
        """Whether so many are ours while the block lasts; not if others keep them."""
        with self._taken(_Wish(count, count, goes_first)):
            self.held = self.held._replace(watch=NEVER)
            yield self.held.are_ours

    @contextmanager
    def shared(self, count: int) -> Iterator[bool]:
        """The same of at most so many, for a step that watches and pauses."""
        with self._taken(_Wish(count, 1)):
            yield self.held.are_ours

    @property
    def are_called(self) -> bool:
        """Whether the watch is over; between two operations of Python."""
        _, asked, let_go = self.held.watch
        now = self._counted()
        return self.held.watch is not NEVER and (
            now[ASKED] != asked or let_go not in (ANY, now[LET_GO])
        )

    def pause(self) -> None:
        """Let others have what they wait for, and take anew what is free then."""
        if self.held.are_ours:
            self._unlock_all()
        self._take()

    @contextmanager
    def _taken(self, wish: _Wish) -> Iterator[None]:
        most = len(self._cores)
        count, least = min(wish.num_cores, most), min(wish.least, most)
        self._wish = _Wish(count, least, wish.goes_first)
        self._take()
        try:
            yield
        finally:
            if self.held.are_ours:
                self._let_go()

    def _take(self) -> None:
        """First come, first served. A wait in vain is not repeated while it may last."""
        held = None
        if not (self._late and self._late.is_alive()):
            held = self._take_in_turn(self._wish)
        self.held = held or Held(self._wish.num_cores, are_ours=False, watch=NEVER)

    def _take_in_turn(self, wish: _Wish) -> Held | None:
        place = self._be_next(wish, AT_ONCE)
        if place and len(place.mine) >= wish.least:
            return self._begin(place, wish)
        return self._wait(wish, place)

    def _be_next(self, wish: _Wish, how: int) -> _Next | None:
        """With what is free. Who goes first asks for the rest at once: a thread that waits
        would have to be given a core before it could.
        """
        if not self._lock(self._next, how):
            return None
        place = _Next([], *self._counted())
        self._take_free(wish, place)
        if len(place.mine) < wish.least and wish.goes_first:
            self._counters[ASKED] += 1
        return place

    def _wait(self, wish: _Wish, place: _Next | None) -> Held | None:
        """A thread waits, in the kernel and without end: who looks again and again is
        on a core that somebody computes on.
        """
        turn = Future[Held]()
        arguments = wish, place, turn
        thread = Thread(target=self._stand_in_line, args=arguments, daemon=True)
        thread.start()
        try:
            return turn.result(self.patience)
        except TimeoutError:
            if turn.cancel():
                self._late = thread
                return None
        return turn.result()

    def _stand_in_line(
        self, wish: _Wish, place: _Next | None, turn: Future[Held]
    ) -> None:
        began = time.monotonic()
        try:
            held = self._wait_for(wish, place)
        except OSError as error:  # the file was closed, and with it went the locks
            if turn.set_running_or_notify_cancel():
                turn.set_exception(error)
            return
        if turn.set_running_or_notify_cancel():
            turn.set_result(held)
            return
        self._let_go()
        # It was no process that hangs: the next step of that length is waited for.
        self.patience = min(LONGEST_SECONDS, ROOM * (time.monotonic() - began))

    def _wait_for(self, wish: _Wish, place: _Next | None) -> Held:
        place = place or self._be_next(wish, WAITING)
        assert place, "a wait without end"
        while len(place.mine) < wish.least:
            core = next(core for core in self._cores if core not in place.mine)
            self._lock(core, WAITING)
            place.mine.append(core)
        self._take_free(wish, place)
        return self._begin(place, wish)

    def _begin(self, place: _Next, wish: _Wish) -> Held:
        """What was counted until now is no reason to stop."""
        self._unlock(self._next)
        count = len(place.mine)
        let_go = place.let_go if count < wish.num_cores else ANY
        watch = Watch(self._counters, place.asked, let_go)
        return Held(count, are_ours=True, watch=watch)

    def _counted(self) -> tuple[int, int]:
        """What was, by all. Only who is next in line counts that cores were asked for."""
        return int(self._counters[ASKED]), int(self._counters[LET_GO])

    def _take_free(self, wish: _Wish, place: _Next) -> None:
        """As many as are missing, if there are."""
        for core in self._cores:
            is_missing = len(place.mine) < wish.num_cores and core not in place.mine
            if is_missing and self._lock(core, AT_ONCE):
                place.mine.append(core)

    def _lock(self, byte: int, how: int) -> bool:
        try:
            fcntl.lockf(self._fd, how, 1, byte)
        except BlockingIOError:
            return False
        return True

    def _unlock(self, byte: int) -> None:
        fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, byte)

    def _let_go(self) -> None:
        """At a step's end. If two count at once one is lost; who watches hears the other.

        Not of a pause: two steps that pause would call each other for ever.
        """
        self._unlock_all()
        self._counters[LET_GO] += 1

    def _unlock_all(self) -> None:
        fcntl.lockf(self._fd, fcntl.LOCK_UN)
