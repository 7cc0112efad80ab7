"""What a long step looks at between two tasks, to hear that it should stop.

Two counters in memory that all workers have, behind the store's blocks: how often cores
were asked for by a step that goes first, and how often cores were let go. Whoever asks
is next in line for cores (`engine.cores`).
"""

import mmap
import os
from typing import Any, NamedTuple

import numpy as np

from engine.atomics import current
from engine.compiled import inlined
from protocol.memory import COUNTERS_BYTES

ASKED, LET_GO = 0, 1
ANY = -1  # as many as there are

Array = Any


class Watch(NamedTuple):
    """A step goes on while counters say what they said when it took its cores."""

    counters: Array  # [2] int64
    asked: int
    let_go: int  # ANY: it has all the cores that it wants


NEVER = Watch(np.zeros(2, np.int64), 0, ANY)


@inlined
def is_over(watch: Watch) -> bool:
    """Whether somebody goes first, or a core is free that is missing."""
    if current(watch.counters, ASKED) != watch.asked:
        return True
    return watch.let_go != ANY and current(watch.counters, LET_GO) != watch.let_go


def counters_behind(fd: int) -> Array:
    """Of a file of blocks that is open for writing; the array keeps them mapped."""
    first = os.fstat(fd).st_size - COUNTERS_BYTES
    page = first - first % mmap.PAGESIZE
    memory = mmap.mmap(fd, first + COUNTERS_BYTES - page, offset=page)
    return np.frombuffer(memory, np.int64, 2, first - page)
