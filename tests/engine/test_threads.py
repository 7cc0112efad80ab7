"""How a process takes its part of the cores."""

import os
import subprocess
import sys

import numba
import pytest
import torch

from engine.threads import Threads

CORES = len(os.sched_getaffinity(0))


@pytest.fixture(autouse=True)
def _as_before() -> object:
    before = torch.get_num_threads(), numba.get_num_threads()
    yield
    torch.set_num_threads(before[0])
    numba.set_num_threads(before[1])


def test_who_computes_alone_has_all_cores() -> None:
    """
    Without a limit a process that computes alone uses every core it has.
    """
    threads = Threads(0)

    threads.apply()

    assert torch.get_num_threads() == numba.get_num_threads() == CORES


@pytest.mark.parametrize("num_computing", [0, 1, 2, CORES, CORES + 5])
def test_who_computes_beside_others_has_a_fair_part(num_computing: int) -> None:
    """
    The cores are divided among those who compute; at least one thread is everyone's.
    """
    threads = Threads(0)

    threads.share(num_computing)
    threads.apply()

    fair = max(1, CORES // max(1, num_computing))
    assert torch.get_num_threads() == numba.get_num_threads() == fair


def test_a_limit_holds_for_who_is_alone() -> None:
    """
    A process never uses more threads than it was given.
    """
    threads = Threads(1)

    threads.share(1)

    assert threads.count == 1


def test_torch_and_numba_have_one_pool() -> None:
    """
    Loaded in this order, both compute on the threads of one and the same library.
    """
    program = """
from engine.openmp import share_pool
share_pool()
import re, torch
from engine.program import NOWHERE, program_of, run
run(program_of(1), NOWHERE, 2)
torch.ones(1 << 20).sum()
maps = open("/proc/self/maps").read()
print(len(set(re.findall(r"\\S*libgomp\\S*", maps))))
"""

    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert done.stdout == "1\n"
