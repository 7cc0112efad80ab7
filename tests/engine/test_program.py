"""A run that stops between two tasks, and goes on."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle

import numpy as np
import pytest
import torch
from chains import chain_of
from numba import config, set_num_threads

from engine.place import NOWHERE
from engine.program import Program, run
from engine.watch import ANY, ASKED, LET_GO, Watch

LENGTH = 200  # products
MANY = 20


class Product:
    """A chain of products, and what it ends with."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self._weight = torch.randn(1024, 1024).div(32).bfloat16()
        self._ends = torch.zeros(2, 1024).bfloat16()
        self._start = torch.randn(1024).bfloat16()
        self._bias = torch.zeros(1024).bfloat16()
        self._program = chain_of(self._weight, self._bias, self._ends, LENGTH)

    def start(self) -> Program:
        self._ends[0] = self._start
        return self._program

    @property
    def end(self) -> torch.Tensor:
        return self._ends.clone()


class Interrupted:
    """Goes on with another number of threads after each pause."""

    def __init__(self, watched: int) -> None:
        self.counters, self._watched = np.zeros(2, np.int64), watched
        self._threads = cycle([1, 2, 2])
        self.num_pauses = 0

    @property
    def watch(self) -> Watch:
        asked, let_go = self.counters.tolist()
        return Watch(self.counters, asked, ANY if self._watched == ASKED else let_go)

    def pause(self) -> None:
        self.num_pauses += 1
        set_num_threads(min(next(self._threads), config.NUMBA_NUM_THREADS))


@contextmanager
def counting(counters: np.ndarray, which: int) -> Iterator[None]:
    """Somebody counts one of them up, again and again."""
    has_ended = threading.Event()

    def count() -> None:
        while not has_ended.wait(0.0002):
            counters[which] += 1

    thread = threading.Thread(target=count)
    thread.start()
    try:
        yield
    finally:
        has_ended.set()
        thread.join()


@pytest.mark.parametrize("watched", [ASKED, LET_GO], ids=["asked", "let go"])
def test_a_run_that_pauses_answers_alike(watched: int) -> None:
    """
    Interrupted all the time, and continued on one thread or two.

    To the bit what an uninterrupted run computes: nothing is left out nor done anew.
    """
    product, interrupted = Product(), Interrupted(watched)
    run(product.start(), NOWHERE)
    expected = product.end

    with counting(interrupted.counters, watched):
        for _ in range(MANY):
            run(product.start(), NOWHERE, interrupted)

            assert torch.equal(product.end, expected)

    assert interrupted.num_pauses >= MANY


def test_who_has_all_its_cores_hears_of_no_free_one() -> None:
    """
    Cores are let go all the time; only who misses one pauses for that.
    """
    product, interrupted = Product(), Interrupted(ASKED)

    with counting(interrupted.counters, LET_GO):
        for _ in range(MANY):
            run(product.start(), NOWHERE, interrupted)

    assert interrupted.num_pauses == 0
