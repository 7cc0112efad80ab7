"""How a process takes its part of the cores."""

import os
import subprocess
import sys
from itertools import pairwise

import numba
import pytest
import torch
from holding import holder, said, stop, watcher

from engine.cores import Cores
from engine.threads import CORE, TURN_SECONDS, Threads

CORES = len(os.sched_getaffinity(0))


class Clock:
    """Goes on by as much work as a step has, over its threads."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def steps_of(
    threads: Threads, clock: Clock, num_steps: int, work: float = 1.0
) -> list[tuple[int, float]]:
    """Threads and seconds of so many steps."""
    steps = []
    for _ in range(num_steps):
        with threads.turn():
            assert torch.get_num_threads() == numba.get_num_threads() == threads.count
            clock.now += work / threads.count
        steps.append((threads.count, work / threads.count))
    return steps


def cores_of(steps: list[tuple[int, float]]) -> float:
    """Computed on, on average over the time."""
    return sum(n * seconds for n, seconds in steps) / sum(s for _, s in steps)


def test_who_computes_alone_has_all_cores() -> None:
    """
    Without a limit a process that computes alone uses every core it has.
    """
    threads = Threads(0)

    with threads.turn():
        assert torch.get_num_threads() == numba.get_num_threads() == CORES


@pytest.mark.parametrize("num_peers", [1, 2, CORES, CORES + 5])
def test_who_computes_beside_others_has_a_fair_part(num_peers: int) -> None:
    """
    The cores are divided among those who compute; at least one thread is everyone's.
    """
    clock = Clock()
    threads = Threads(0, clock)

    threads.share(100, num_peers)
    steps = steps_of(threads, clock, 1000)

    assert cores_of(steps) == pytest.approx(max(1, CORES / num_peers), rel=0.02)


@pytest.mark.parametrize("percent", [1, 50, 60, 85, 100])
@pytest.mark.parametrize("work", [0.002, 0.2])
def test_a_share_finer_than_a_core_is_kept_by_time(percent: int, work: float) -> None:
    """
    60 % of two cores are one thread for four fifths of the time, and two for the fifth,
    though steps on two take half as long; of a whole number of cores each step has that
    many.
    """
    clock = Clock()
    threads = Threads(0, clock)

    threads.share(percent, 1)
    steps = steps_of(threads, clock, 1000, work)

    counts = [count for count, _ in steps]
    assert cores_of(steps) == pytest.approx(max(1, CORES * percent / CORE), rel=0.02)
    assert max(counts) - min(counts) <= 1


@pytest.mark.skipif(CORES < 2, reason="one core is no number to change")
def test_threads_do_not_change_with_every_short_step() -> None:
    """
    A turn is longer than what the change of their number costs, and a long step is one.
    """
    clock = Clock()
    threads = Threads(0, clock)
    threads.share(100 - CORE // (2 * CORES), 1)  # half a core less than all

    short = [n for n, _ in steps_of(threads, clock, 200, work=TURN_SECONDS / 5)]
    long = [n for n, _ in steps_of(threads, clock, 200, work=10 * TURN_SECONDS)]

    assert sum(a != b for a, b in pairwise(long)) > 50
    assert sum(a != b for a, b in pairwise(short)) <= 200 / 5


def test_a_share_goes_both_ways() -> None:
    """
    However often it changes, a step has between one thread and the limit.
    """
    clock = Clock()
    threads = Threads(0, clock)
    counts = []

    for percent in (1, 99, 20, 100, 55, 1, 80) * 3:
        threads.share(percent, 1)
        counts += [count for count, _ in steps_of(threads, clock, 2)]

    assert min(counts) == 1
    assert max(counts) == CORES


def test_a_limit_holds_for_who_is_alone() -> None:
    """
    A process never uses more threads than it was given.
    """
    clock = Clock()
    threads = Threads(1, clock)

    threads.share(100, 1)
    steps = steps_of(threads, clock, 3)

    assert [count for count, _ in steps] == [1, 1, 1]


@pytest.mark.skipif(CORES < 2, reason="one core is all there is")
def test_a_long_step_has_as_many_threads_as_there_are_cores_for_it(
    shared_fd: int,
) -> None:
    """
    One beside another process, and two when that has let go.
    """
    threads, found = Threads(2), list[int]()
    threads.compete(Cores(shared_fd))

    with holder(shared_fd, 1) as other, threads.turn(is_long=True):
        found.append(numba.get_num_threads())
        stop(other)
        threads.look()
        found += [numba.get_num_threads(), torch.get_num_threads(), threads.count]

    assert found == [1, 2, 2, 2]


def test_what_others_have_meanwhile_is_not_counted(shared_fd: int) -> None:
    """
    A step of half a second that waited ten for its cores took a core for half a second:
    the next one need not be shorter.
    """
    clock = Clock()

    class Slow(Cores):
        def pause(self) -> None:
            clock.now += 10.0

    threads, counts = Threads(2, clock), list[int]()
    threads.compete(Slow(shared_fd))
    threads.share(75, 1)

    for _ in range(100):
        with threads.turn(is_long=True):
            clock.now += 0.25 / threads.count
            threads.pause()
            clock.now += 0.25 / threads.count
        counts.append(threads.count)

    assert cores_of([(n, 0.5 / n) for n in counts]) == pytest.approx(1.5, rel=0.02)


@pytest.mark.parametrize(("percent", "goes_first"), [(50, True), (100, False)])
def test_who_has_a_share_goes_first(
    shared_fd: int, percent: int, goes_first: bool
) -> None:
    """
    A long step pauses for who has no more than a part; who may have everything waits for
    its turn, here in vain.
    """
    cores = Cores(shared_fd)
    threads = Threads(1)
    threads.compete(cores)
    threads.share(percent, 1)
    cores.patience = 60.0 if goes_first else 0.1

    with watcher(shared_fd, 2) as long:
        assert said(long) == "2"
        with threads.turn():
            assert cores.held.are_ours == goes_first


def test_torch_and_numba_have_one_pool() -> None:
    """
    Loaded in this order, both compute on the threads of one and the same library.
    """
    program = """
from engine.openmp import share_pool
share_pool()
import re, torch
from engine.place import NOWHERE
from engine.program import program_of, run
run(program_of(1), NOWHERE)
torch.ones(1 << 20).sum()
maps = open("/proc/self/maps").read()
print(len(set(re.findall(r"\\S*libgomp\\S*", maps))))
"""

    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert done.stdout == "1\n"
