"""How a process takes its part of the cores."""

import os
import subprocess
import sys

import numba
import pytest
import torch

from engine.threads import TURN, Threads

CORES = len(os.sched_getaffinity(0))


@pytest.fixture(autouse=True)
def _as_before() -> object:
    before = torch.get_num_threads(), numba.get_num_threads()
    yield
    torch.set_num_threads(before[0])
    numba.set_num_threads(before[1])


def counts_of(threads: Threads, num_steps: int) -> list[int]:
    """The threads of so many steps, as torch and Numba have them."""
    counts = []
    for _ in range(num_steps):
        threads.apply()
        assert torch.get_num_threads() == numba.get_num_threads() == threads.count
        counts.append(threads.count)
    return counts


def test_who_computes_alone_has_all_cores() -> None:
    """
    Without a limit a process that computes alone uses every core it has.
    """
    threads = Threads(0)

    threads.apply()

    assert torch.get_num_threads() == numba.get_num_threads() == CORES


@pytest.mark.parametrize("num_peers", [1, 2, CORES, CORES + 5])
def test_who_computes_beside_others_has_a_fair_part(num_peers: int) -> None:
    """
    The cores are divided among those who compute; at least one thread is everyone's.
    """
    threads = Threads(0)

    threads.share(100, num_peers)
    counts = counts_of(threads, 100 * TURN)

    assert sum(counts) == TURN * max(100, CORES * 100 // num_peers)


@pytest.mark.parametrize("percent", [1, 50, 60, 85, 100])
def test_a_share_finer_than_a_core_is_kept_by_turns(percent: int) -> None:
    """
    60 % of two cores are one thread in four turns of five, and two in the fifth; of a
    whole number of cores each step has that many.
    """
    threads = Threads(0)

    threads.share(percent, 1)
    counts = counts_of(threads, 100 * TURN)

    assert sum(counts) == TURN * max(100, CORES * percent)
    assert max(counts) - min(counts) <= 1


def test_a_share_goes_both_ways() -> None:
    """
    However often it changes, a step has between one thread and the limit.
    """
    threads = Threads(0)
    counts = []

    for percent in (1, 99, 20, 100, 55, 1, 80) * 3:
        threads.share(percent, 1)
        counts += counts_of(threads, 2)

    assert min(counts) == 1
    assert max(counts) == CORES


def test_a_limit_holds_for_who_is_alone() -> None:
    """
    A process never uses more threads than it was given.
    """
    threads = Threads(1)

    threads.share(100, 1)
    counts = counts_of(threads, 3)

    assert counts == [1, 1, 1]


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
run(program_of(1), NOWHERE._replace(num_threads=2))
torch.ones(1 << 20).sum()
maps = open("/proc/self/maps").read()
print(len(set(re.findall(r"\\S*libgomp\\S*", maps))))
"""

    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert done.stdout == "1\n"
