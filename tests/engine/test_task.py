"""Tasks that two threads compute and one puts."""

import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from chains import chain_of
from numba import config, set_num_threads

from engine.matmul import linear_tile
from engine.place import NOWHERE
from engine.program import run
from engine.task import Task, alone


@pytest.fixture
def product() -> tuple[torch.Tensor, ...]:
    """x, weight, bias, and y that nobody wrote yet."""
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 32), torch.randn(8, 32), torch.zeros(8)
    y = torch.full((2, 8), -1.0)
    return tuple(tensor.bfloat16() for tensor in (x, weight, bias, y))


def put(product: tuple[torch.Tensor, ...], task: Task) -> bool:
    """The one tile of the product, as this task."""
    return bool(linear_tile(*(t.data_ptr() for t in product), (2, 32, 8), task))


def test_a_task_is_put_by_the_first_alone(product: tuple[torch.Tensor, ...]) -> None:
    """
    Two compute the same task of one run.

    Whoever comes second, perhaps when its operands are others already, writes nothing.
    """
    x, weight, _, y = product
    claim = np.zeros(1, np.int64)
    task = Task(0, claim.ctypes.data, 1)

    assert put(product, task)
    expected = y.clone()
    x.zero_()
    assert not put(product, task)

    assert torch.equal(y, expected)
    assert y.ne(-1).all()
    assert weight.ne(0).any()


def test_each_run_puts_anew(product: tuple[torch.Tensor, ...]) -> None:
    """
    A claim is of one run: nothing has to be cleared before the next.
    """
    claim = np.zeros(1, np.int64)

    runs = [put(product, Task(0, claim.ctypes.data, run)) for run in (1, 2, 2, 3)]

    assert runs == [True, True, False, True]
    assert claim[0] == 3


def test_a_task_that_nobody_shares_is_always_put(
    product: tuple[torch.Tensor, ...],
) -> None:
    """
    Outside a tape there is nobody to compete with.
    """
    assert [put(product, alone(0)) for _ in range(2)] == [True, True]


def pin(cores: set[int]) -> None:
    """All threads of this process."""
    for thread in Path("/proc/self/task").iterdir():
        with suppress(ProcessLookupError):  # it has ended meanwhile
            os.sched_setaffinity(int(thread.name), cores)


def test_threads_that_take_a_core_from_each_other_answer_alike() -> None:
    """
    Two threads on one core: one is always off it, often in the middle of a task.

    The other does that task and goes on, and writes where the first one still reads; when
    it comes back, its answer belongs nowhere.

    To the bit what one thread computes, time after time.
    """
    torch.manual_seed(0)
    weight = torch.randn(1024, 1024).div(32).bfloat16()
    ends = torch.zeros(2, 1024).bfloat16()
    start, bias = torch.randn(1024).bfloat16(), torch.zeros(1024).bfloat16()
    program = chain_of(weight, bias, ends, 200)

    def end(threads: int) -> torch.Tensor:
        ends[0] = start
        set_num_threads(min(threads, config.NUMBA_NUM_THREADS))
        run(program, NOWHERE)
        return ends.clone()

    end(2)  # starts the threads
    expected = end(1)
    before = os.sched_getaffinity(0)
    pin({min(before)})
    try:
        found = [end(2) for _ in range(30)]
    finally:
        pin(before)

    assert expected.isfinite().all()
    assert all(torch.equal(each, expected) for each in found)
