"""A killed worker whose last step still runs on a GPU: nobody else gets what it writes to."""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from fake_gpu import fake_bindings, path_with_fake
from jobs import GEOMETRY, held, loaded_pool, prefill_job, step
from owning import admitted, adopted, announced, prefilled
from waiting import wait_until

from device.driver import Driver
from kv.cuda import segment_maker
from kv.operations import Queued
from kvstore.fence import Fence, process_behind
from kvstore.pool import Pool
from kvstore.server import serve_pool
from kvstore.store import Store
from protocol.messages import RequestId

TESTS = Path(__file__).parent.parent

# A worker that hangs up, and ends when its input does.
WORKER = """
import sys
from pathlib import Path
from jobs import FACTS, prefill_job
from kv.client import StoreClient

store = StoreClient(Path(sys.argv[1]))
attachment = store.attach("w", FACTS.fingerprint)
store.admit(prefill_job(num_tokens=6))
store.close()
print("closed", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def store() -> Iterator[Store]:
    """A pool of ten blocks of four tokens; its invariants hold after each test."""
    store = Store(GEOMETRY, num_blocks=10, max_waiting=3)
    yield store
    store.check()


@pytest.fixture
async def pool(tmp_path: Path) -> AsyncIterator[Pool]:
    """A store that listens at tmp_path/s and lends a GPU's memory."""
    make = segment_maker("vmm", lambda: Driver(fake_bindings()))
    pool = loaded_pool(10, make)
    async with serve_pool(tmp_path / "s", pool, lambda: None):
        yield pool
    assert pool.store
    pool.store.check()


def start_worker(path: Path) -> subprocess.Popen[str]:
    paths = os.pathsep.join([path_with_fake(), str(TESTS)])
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )


def test_the_next_owner_goes_on_in_the_same_blocks(store: Store) -> None:
    """
    It writes what the last step may still write: no copy is made, no block is lost.
    """
    lost = prefilled(store, prefill_job("r1", 10))

    store.fence("a")

    (heir,) = adopted(store, "b")
    assert (heir.block_table, heir.copies) == (lost.block_table, ())
    assert (heir.num_computed_tokens, store.blocks.num_available) == (10, 7)


def test_what_is_given_back_meanwhile_is_nobody_s(store: Store) -> None:
    """
    A cancel right after the death frees full blocks at once, the begun one only when the
    process has ended.
    """
    lost = prefilled(store, prefill_job("r1", 10))
    store.fence("a")
    store.cancel(lost.request_id)

    waiting = store.admit(prefill_job("r2", 40, max_tokens=1), "b")
    meanwhile = (store.blocks.num_available, store.blocks.num_quarantined)
    store.detach("a")

    assert isinstance(waiting, Queued)
    assert meanwhile == (9, 1)
    (after,) = adopted(store, "b")
    assert lost.block_table[2] in after.block_table


def test_two_that_died_after_each_other(store: Store) -> None:
    """
    A block that both may write to is kept until both have ended.
    """
    lost = prefilled(store, prefill_job("r1", 10))
    store.fence("a")
    adopted(store, "b")
    store.fence("b")
    store.cancel(lost.request_id)

    store.detach("b")
    of_one = store.blocks.num_quarantined
    store.detach("a")

    assert (of_one, store.blocks.num_quarantined) == (1, 0)


def test_a_copy_that_was_begun_goes_nowhere(store: Store) -> None:
    """
    A late copy of a whole block would overwrite what the next owner has written there: it
    makes a copy of its own.
    """
    leader = admitted(store, prefill_job("r1", 6))
    store.admit(prefill_job("r2", 6, like="r1"), "b")
    store.advance([step(leader, 6, 50)], "a")
    (follower,) = adopted(store, "b")

    store.fence("b")

    (heir,) = adopted(store, "c")
    ((source, target),) = heir.copies
    assert source == follower.copies[0][0]
    assert target not in follower.block_table
    store.advance([step(heir, 6, 60)], "c")
    store.release([held(heir)], "c")
    assert store.blocks.num_quarantined == 1


def test_a_worker_between_two_steps_leaves_nothing(store: Store) -> None:
    """
    Who parked what it held may end as it likes.
    """
    record = prefilled(store, prefill_job("r1", 10))
    store.park([held(record)], "a")

    store.fence("a")

    assert store.blocks.num_quarantined == 0
    assert len(announced(store)) == 1


async def test_a_process_that_lives_on_holds_its_blocks(
    pool: Pool, tmp_path: Path
) -> None:
    """
    Its connection is closed, and its sequence anybody's; of the two blocks the one that a
    kernel may still write to is free only when the process has ended.
    """
    store = pool.store
    assert store
    with start_worker(tmp_path / "s") as worker:
        assert worker.stdout
        line = await asyncio.to_thread(worker.stdout.readline)
        await wait_until(lambda: list(store.announcements) == ["r1"])
        store.cancel(RequestId("r1"))
        store.check()
        meanwhile = (store.blocks.num_free, store.blocks.num_quarantined)

        worker.kill()
        await wait_until(lambda: store.blocks.num_free == 10)

    assert line == "closed\n"
    assert meanwhile == (8, 2)
    assert store.blocks.num_quarantined == 0


async def test_a_process_that_cannot_be_watched_has_a_grace() -> None:
    """
    Where the kernel does not say who connected, a few seconds have to do.
    """
    ended: list[str] = []

    with closing(Fence(ended.append, grace_seconds=0.01)) as fence:
        fence.watch("peer-1", None)
        before = list(ended)
        await wait_until(lambda: ended)

    assert (before, ended) == ([], ["peer-1"])


async def test_a_store_that_stops_waits_for_nobody() -> None:
    """
    What it watched is let go, and no descriptor stays open.
    """
    before = len(os.listdir("/proc/self/fd"))
    ours, theirs = socket.socketpair()

    with ours, theirs, closing(Fence(lambda peer: None)) as fence:
        fence.watch("peer-1", process_behind(ours))
        fence.watch("peer-2", None)

    assert len(os.listdir("/proc/self/fd")) == before
