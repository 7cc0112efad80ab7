"""Steps of several processes take turns on the cores that they share."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from waiting import wait_until

from engine import cores
from engine.cores import Cores
from kv.segments import HostSegment

HOLDER = """
import os, sys
os.sched_getaffinity = lambda _: {0, 1}
from engine.cores import Cores
with Cores(int(sys.argv[1])).taken(int(sys.argv[2])) as are_ours:
    print("holds" if are_ours else "waited in vain", flush=True)
    sys.stdin.readline()
print("let go", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def fd(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Of the memory that all processes share, on a machine of two cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    segment = HostSegment("blocks", 4096)
    yield segment.fd
    segment.close()


@contextmanager
def holder(fd: int, count: int) -> Iterator[subprocess.Popen[str]]:
    """Another process that computes on so many cores until it is told to stop."""
    command = [sys.executable, "-c", HOLDER, str(fd), str(count)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, pass_fds=[fd], text=True, **pipes) as process:
        assert process.stdout
        assert process.stdout.readline() == "holds\n"
        try:
            yield process
        finally:
            process.kill()


def stop(process: subprocess.Popen[str]) -> None:
    """It lets go, and goes on to live."""
    assert process.stdin
    assert process.stdout
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "let go\n"


def take(ours: Cores, count: int) -> bool:
    """Whether a step had so many."""
    with ours.taken(count) as are_ours:
        return are_ours


@pytest.mark.parametrize("end", [stop, subprocess.Popen.kill])
async def test_a_step_waits_until_its_cores_are_free(
    fd: int,
    end: Callable[[subprocess.Popen[str]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """
    Another step is on all cores: ours begins when that one ends, or its process does.
    """
    monkeypatch.setattr(cores, "FIRST_SECONDS", 60.0)
    with holder(fd, 2) as other:
        step = asyncio.create_task(asyncio.to_thread(take, Cores(fd), 1))

        await asyncio.sleep(0.05)
        assert not step.done()

        end(other)

        async with asyncio.timeout(10):
            await step


def test_steps_of_one_thread_run_side_by_side(
    fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Two that need one core each have one each; who needs both at that time does not.
    """
    monkeypatch.setattr(cores, "FIRST_SECONDS", 0.0)
    with holder(fd, 1):
        ours = Cores(fd)

        has_one, has_two = take(ours, 1), take(ours, 2)

    assert (has_one, has_two) == (True, False)


def test_more_threads_than_cores_take_all_of_them(fd: int) -> None:
    """
    A person may ask for more threads than there are cores: a step has all of these.
    """
    has_all = take(Cores(fd), 3)

    assert has_all


async def test_nobody_waits_for_ever_nor_twice(fd: int) -> None:
    """
    A process that hangs keeps its cores: others go on all the same, and without another
    wait until it lets them go.
    """
    ours = Cores(fd)
    with holder(fd, 2) as other:
        ours.patience = 0.05
        had_them = [take(ours, 2)]
        ours.patience = 60.0
        had_them.append(take(ours, 2))

        stop(other)

        assert had_them == [False, False]
        await wait_until(lambda: take(ours, 2))


def test_who_waited_in_vain_keeps_nothing(
    fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A step that went on without its cores does not get them later, when nobody would let
    them go: its place in line ends as soon as it comes to the front.
    """
    monkeypatch.setattr(cores, "FIRST_SECONDS", 0.05)
    with holder(fd, 1) as other:
        had_both = take(Cores(fd), 2)
        stop(other)

        with holder(fd, 2):
            assert not had_both


async def test_steps_that_are_long_are_waited_for(fd: int) -> None:
    """
    A step that took longer than we would wait, but did end, was no process that hangs:
    the next one may take twice as long, and we do not compute beside it.
    """
    ours = Cores(fd)
    ours.patience = 0.05
    with holder(fd, 2) as other:
        take(ours, 2)
        await asyncio.sleep(0.1)
        stop(other)
    await wait_until(lambda: take(ours, 2))

    assert 0.2 <= ours.patience <= cores.LONGEST_SECONDS
