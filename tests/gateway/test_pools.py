"""What a gateway knows of pools: their limits, who would answer, and what was lost."""

import asyncio

import pytest
from fake_pool import pool_status, worker_status
from redis.asyncio import Redis
from waiting import wait_until

from gateway.errors import Unavailable
from gateway.pool import PoolView
from gateway.pools import Pools
from mesh.connect import connect
from protocol import keys
from protocol.messages import PoolStatus, WorkerStatus
from protocol.wire import encode

PREFILL = pool_status("p", handoff_pool="d")
DECODE = pool_status("d", total=4)
WORKERS = [worker_status("p", "prefill"), worker_status("d", "decode")]


def view_of(*statuses: PoolStatus, workers: list[WorkerStatus]) -> PoolView:
    """A pool called p, after one look."""
    view = PoolView("p", lease_seconds=0)
    view.see({status.pool: status for status in statuses}, workers)
    return view


def test_a_small_pool_limits_the_context() -> None:
    """
    What fits is the smaller of the model's context and the pool's memory.
    """
    status = pool_status("p", block_size=4, max_model_len=100, total=3)

    view = view_of(status, workers=[])

    assert view.max_tokens == 12


def test_two_pools_are_one_place() -> None:
    """
    A pool that hands over is ready with its decode workers there, and both must have room.
    """
    view = view_of(PREFILL, DECODE, workers=WORKERS)

    assert view.names == ["p", "d"]
    assert view.is_ready
    assert view.max_tokens == 64


@pytest.mark.parametrize(
    ("statuses", "workers"),
    [
        ([PREFILL], WORKERS),
        ([PREFILL, DECODE], WORKERS[:1]),
        ([PREFILL, DECODE], WORKERS[1:]),
        ([PREFILL, DECODE], [WORKERS[1], worker_status("d", "prefill")]),
    ],
)
def test_half_of_it_is_not_ready(
    statuses: list[PoolStatus], workers: list[WorkerStatus]
) -> None:
    """
    Without its other store, or a worker of each phase where it belongs, nothing is
    answered.
    """
    view = view_of(*statuses, workers=workers)

    assert not view.is_ready


def test_a_new_store_is_noticed_on_either_side() -> None:
    """
    The pool whose memory is another one is named: what it had is lost.
    """
    view = view_of(PREFILL, DECODE, workers=WORKERS)

    pools = {"p": PREFILL, "d": DECODE.changed(store="store-2")}

    assert view.see(pools, WORKERS) == ["d"]
    assert view.see(pools, WORKERS) == []


def test_who_is_silent_is_gone_unless_all_are() -> None:
    """
    A store that is not heard for a lease is gone; while Redis is away nobody is.
    """
    view = view_of(PREFILL, DECODE, workers=WORKERS)

    view.see({"p": PREFILL}, WORKERS)
    gone = view.gone
    view.lose_sight()
    away = view.gone
    view.see({"p": PREFILL, "d": DECODE}, WORKERS)

    assert (gone, away, view.gone) == ("d", "", "")


def test_nothing_is_known_before_a_pool_was_seen() -> None:
    """
    Who asks before any pool has its model is told to come back.
    """
    pools = Pools(["a", "b"], 1.0, lambda view, name: None)

    with pytest.raises(Unavailable, match="still being loaded"):
        pools.limits()


async def test_limits_are_those_of_the_largest_pool(redis: Redis) -> None:
    """
    A request is refused only if it fits nowhere.
    """
    pools = Pools(["a", "b"], 1.0, lambda view, name: None)
    for name, total in (("a", 2), ("b", 4), ("c", 8)):
        await redis.set(keys.pool(name), encode(pool_status(name, total=total)))

    await pools.look(redis)

    assert pools.limits().max_tokens == 64


async def test_a_pool_that_died_beside_another_is_told_of(redis: Redis) -> None:
    """
    While somebody else would answer, a lost pool's requests need not wait for it.
    """
    lost: list[tuple[str, str]] = []
    pools = Pools(["a", "b"], 0.0, lambda view, name: lost.append((view.name, name)))
    for name in ("a", "b"):
        await redis.set(keys.pool(name), encode(pool_status(name)))
        for worker in (worker_status(name, "prefill"), worker_status(name, "decode")):
            await redis.set(keys.worker(worker.worker_id), encode(worker))
    await pools.look(redis)

    await redis.delete(keys.pool("a"))
    await pools.look(redis)

    assert lost == [("a", "a")]


async def test_without_redis_no_pool_is_ready(redis_url: str, redis: Redis) -> None:
    """
    What cannot be seen is not ready, and is looked for until it can.
    """
    pools, stopping = Pools(["a"], 1.0, lambda view, name: None), asyncio.Event()
    pools.views[0].is_ready = True
    async with asyncio.TaskGroup() as tasks, connect("unix:///nowhere") as nobody:
        tasks.create_task(pools.watch(nobody, 0.01, stopping), name="watch")
        await wait_until(lambda: not pools.is_ready)
        stopping.set()
