"""Steps of several processes take turns on the cores that they share."""

import asyncio
import os
import subprocess
from collections.abc import Callable
from contextlib import closing

import pytest
from holding import holder, said, stop, watcher
from waiting import wait_until

from engine import cores
from engine.cores import Cores
from engine.watch import ASKED, counters_behind
from kv.segments import HostSegment, Mapping
from protocol.memory import KVGeometry, LayerGeometry


def take(ours: Cores, count: int) -> bool:
    """Whether a step had so many."""
    with ours.taken(count) as are_ours:
        return are_ours


@pytest.mark.parametrize("end", [stop, subprocess.Popen.kill])
async def test_a_step_waits_until_its_cores_are_free(
    shared_fd: int,
    end: Callable[[subprocess.Popen[str]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """
    Another step is on all cores: ours begins when that one ends, or its process does.
    """
    monkeypatch.setattr(cores, "FIRST_SECONDS", 60.0)
    with holder(shared_fd, 2) as other:
        step = asyncio.create_task(asyncio.to_thread(take, Cores(shared_fd), 1))

        await asyncio.sleep(0.05)
        assert not step.done()

        end(other)

        async with asyncio.timeout(10):
            await step


def test_steps_of_one_thread_run_side_by_side(
    shared_fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Two that need one core each have one each; who needs both at that time does not.
    """
    monkeypatch.setattr(cores, "FIRST_SECONDS", 0.0)
    with holder(shared_fd, 1):
        ours = Cores(shared_fd)

        has_one, has_two = take(ours, 1), take(ours, 2)

    assert (has_one, has_two) == (True, False)


def test_more_threads_than_cores_take_all_of_them(shared_fd: int) -> None:
    """
    A person may ask for more threads than there are cores: a step has all of these.
    """
    has_all = take(Cores(shared_fd), 3)

    assert has_all


async def test_nobody_waits_for_ever_nor_twice(shared_fd: int) -> None:
    """
    A process that hangs keeps its cores: others go on all the same, and without another
    wait until it lets them go.
    """
    ours = Cores(shared_fd)
    with holder(shared_fd, 2) as other:
        ours.patience = 0.05
        had_them = [take(ours, 2)]
        ours.patience = 60.0
        had_them.append(take(ours, 2))

        stop(other)

        assert had_them == [False, False]
        await wait_until(lambda: take(ours, 2))


def test_who_waited_in_vain_keeps_nothing(
    shared_fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A step that went on without its cores does not get them later, when nobody would let
    them go: its place in line ends as soon as it comes to the front.
    """
    monkeypatch.setattr(cores, "FIRST_SECONDS", 0.05)
    with holder(shared_fd, 1) as other:
        had_both = take(Cores(shared_fd), 2)
        stop(other)

        with holder(shared_fd, 2):
            assert not had_both


async def test_steps_that_are_long_are_waited_for(shared_fd: int) -> None:
    """
    A step that took longer than we would wait, but did end, was no process that hangs:
    the next one may take twice as long, and we do not compute beside it.
    """
    ours = Cores(shared_fd)
    ours.patience = 0.05
    with holder(shared_fd, 2) as other:
        take(ours, 2)
        await asyncio.sleep(0.1)
        stop(other)
    await wait_until(lambda: take(ours, 2))

    assert 0.2 <= ours.patience <= cores.LONGEST_SECONDS


def test_a_long_step_takes_what_is_free(shared_fd: int) -> None:
    """
    It wants two cores, of which somebody has one: it does not wait for that.

    When the other lets go it pauses, and has both; and one again for who goes first.
    """
    ours = Cores(shared_fd)
    with holder(shared_fd, 1) as other, watcher(shared_fd, 2) as long:
        found = [said(long)]
        stop(other)
        found.append(said(long))
        with ours.taken(1, goes_first=True) as are_ours:
            assert are_ours
            found.append(said(long))
        found.append(said(long))

    assert found == ["1", "2", "1", "2"]


def test_a_long_step_goes_on_behind_who_goes_first(shared_fd: int) -> None:
    """
    Who goes first may want all cores: the long step waits until these are let go,
    and has both again.
    """
    ours = Cores(shared_fd)
    with watcher(shared_fd, 2) as long:
        found = [said(long)]
        for _ in range(3):
            with ours.taken(2, goes_first=True) as are_ours:
                assert are_ours
            found.append(said(long))

    assert found == ["2"] * 4


def test_who_goes_first_asks_before_it_waits(shared_fd: int) -> None:
    """
    It has no patience at all, and was counted: no thread had to be given a core for that.
    """
    ours, counters = Cores(shared_fd), counters_behind(shared_fd)
    ours.patience = 0.0
    with holder(shared_fd, 2), ours.taken(1, goes_first=True) as are_ours:
        assert (are_ours, counters[ASKED]) == (False, 1)


def test_nobody_else_makes_a_long_step_pause(shared_fd: int) -> None:
    """
    Who does not go first waits for its end, here in vain.
    """
    ours = Cores(shared_fd)
    ours.patience = 0.1
    with watcher(shared_fd, 2) as long:
        first = said(long)
        has_them = take(ours, 1)
        long.kill()

        assert (first, has_them, said(long)) == ("2", False, "")


def test_a_pause_calls_nobody(shared_fd: int) -> None:
    """
    Two long steps that both miss a core would call each other for ever.
    """
    ours = Cores(shared_fd)
    with holder(shared_fd, 1), ours.shared(2):
        for _ in range(3):
            ours.pause()

        assert ours.held.num_cores == 1
        assert not ours.are_called


def test_a_short_step_never_pauses(shared_fd: int) -> None:
    """
    Others ask and let go meanwhile: who is done in a moment hears nothing.
    """
    ours = Cores(shared_fd)
    with ours.taken(1), holder(shared_fd, 1) as other:
        stop(other)

        assert not ours.are_called


@pytest.mark.parametrize("num_bytes", [1, 63, 64, 4096, 4100])
def test_counters_lie_behind_the_blocks(num_bytes: int) -> None:
    """
    In the same file, whatever its size is, and where no block is.
    """
    layer = LayerGeometry(num_kv_heads=1, k_head_dim=num_bytes, v_head_dim=1)
    geometry = KVGeometry(layers=(layer,), dtype="float32", block_size=1)
    segment = HostSegment("blocks", geometry.segment_bytes(3))
    with closing(segment), closing(Mapping(os.dup(segment.fd), writable=True)) as seen:
        counters = counters_behind(segment.fd)

        counters[:] = -1
        blocks = bytes(seen.view[: 3 * geometry.block_bytes])

    assert blocks == bytes(3 * geometry.block_bytes)
