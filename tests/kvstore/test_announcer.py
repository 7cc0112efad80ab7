"""What the store tells Redis, and what Redis tells the store."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from jobs import held, loaded_pool, prefill_job
from redis.asyncio import Redis
from waiting import wait_until

from kv.operations import Progress, Record
from kvstore.announcer import Announcer
from kvstore.app import obey, snapshot
from kvstore.memory import PoolMemory
from kvstore.pool import Pool
from kvstore.store import MAX_DEATHS
from mesh.state import publish, withdraw
from mesh.streams import Mailbox, send
from protocol import keys
from protocol.messages import (
    Cancel,
    DecodeJob,
    Failed,
    ForgetShares,
    PoolStatus,
    RequestId,
    Shares,
    decode_job,
    decode_reply,
    decode_status,
)
from protocol.wire import encode


@pytest.fixture
def pool() -> Iterator[Pool]:
    pool = loaded_pool(10)
    yield pool
    pool.store.check()


@pytest.fixture
async def announcer(redis: Redis, pool: Pool) -> AsyncIterator[Announcer]:
    """An announcer at work."""
    announcer, stopping = Announcer(redis, pool), asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(announcer.run(stopping), name="announcer")
        yield announcer
        stopping.set()
        announcer.wake()


def decoding(pool: Pool, request_id: str) -> Record:
    """A sequence that worker "a" prefilled and holds."""
    assert pool.store
    record = pool.store.admit(prefill_job(request_id), "a")
    assert isinstance(record, Record)
    step = Progress(
        request_id=record.request_id,
        generation=record.generation,
        num_computed_tokens=6,
        token_ids=(50,),
    )
    pool.store.advance([step], "a")
    return record


async def test_a_parked_sequence_is_on_the_stream_of_its_phase(
    redis: Redis, pool: Pool, announcer: Announcer
) -> None:
    """
    What has its first token goes to decode, what has none yet goes to prefill.
    """
    assert pool.store
    pool.store.admit(prefill_job("r1"), "a")
    decoding(pool, "r2")

    pool.store.detach("a")
    announcer.wake()

    await wait_until(lambda: redis.xlen(keys.prefill("p")))
    await wait_until(lambda: redis.xlen(keys.decode("p")))
    ((_, fields),) = await redis.xrange(keys.decode("p"))
    job = decode_job(fields[b"body"])
    assert isinstance(job, DecodeJob)
    assert job.request_id == "r2"


async def test_what_was_adopted_meanwhile_is_not_announced(
    redis: Redis, pool: Pool, announcer: Announcer
) -> None:
    """
    An announcement that is out of date is dropped, not sent.
    """
    store = pool.store
    assert store
    first, second = decoding(pool, "r1"), decoding(pool, "r2")
    store.park([held(first), held(second)], "a")
    store.adopt(first.request_id, first.generation, "b")

    announcer.wake()

    await wait_until(lambda: not store.announcements)
    assert await redis.xlen(keys.decode("p")) == 1


async def test_many_are_announced_in_their_order(
    redis: Redis, pool: Pool, announcer: Announcer
) -> None:
    """
    All that a worker leaves behind, whoever waited longest first.
    """
    assert pool.store
    records = [decoding(pool, f"r{number}") for number in range(4)]

    pool.store.park(map(held, records), "a")
    announcer.wake()

    await wait_until(lambda: not pool.store.announcements)
    entries = await redis.xrange(keys.decode("p"))
    jobs = [decode_job(fields[b"body"]) for _, fields in entries]
    assert [job.request_id for job in jobs] == ["r0", "r1", "r2", "r3"]


async def test_a_fatal_request_is_buried_and_its_client_told(
    redis: Redis, pool: Pool, announcer: Announcer
) -> None:
    """
    A request on which three workers died is a dead letter and an error.
    """
    mailbox = Mailbox(redis, "g1", keys.replies, lease_seconds=5)
    await mailbox.open()
    assert pool.store
    for number in range(MAX_DEATHS):
        pool.store.admit(prefill_job("r1", generation=number), f"w{number}")
        pool.store.detach(f"w{number}")

    announcer.wake()

    await wait_until(lambda: redis.exists(keys.DEAD_LETTERS))
    letters = [e.fields[b"body"] for e in await mailbox.read(9) if b"body" in e.fields]
    (failed,) = map(decode_reply, letters)
    assert isinstance(failed, Failed)
    assert "died on this request" in failed.reason


@asynccontextmanager
async def obeying(redis: Redis, pool: Pool) -> AsyncIterator[None]:
    """The pool does what its control stream says."""
    stopping = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(
            obey(redis, pool, lambda: None, stopping), name="control"
        )
        yield
        stopping.set()  # Python 3.11 may lose a cancellation
        task.cancel()


async def test_a_cancel_frees_blocks(redis: Redis, pool: Pool) -> None:
    """
    A Cancel on the pool's control stream frees what the request holds.
    """
    store = pool.store
    assert store
    record = decoding(pool, "r1")
    store.park([held(record)], "a")

    async with obeying(redis, pool):
        await wait_until(lambda: blocked_clients(redis))
        cancel = Cancel(request_id=RequestId("r1"))
        await send(redis, keys.control("p"), {"body": b"\xc1"})
        await send(redis, keys.control("p"), {"body": encode(cancel)})
        await wait_until(lambda: store.blocks.num_available == 10)


async def test_shares_are_obeyed_and_outlive_the_store(
    redis: Redis, pool: Pool
) -> None:
    """
    What the control stream says is in force at once, and a store that starts anew goes on
    with it.
    """
    shares, later = Shares(prefill=70, decode=30), loaded_pool(10)

    async with obeying(redis, pool):
        await wait_until(lambda: blocked_clients(redis))
        stream = keys.control("p")
        await publish(redis, keys.shares("p"), stream, encode(shares), max_len=10)
        await wait_until(lambda: pool.division.shares == shares)
    async with obeying(redis, later):
        await wait_until(lambda: later.division.shares == shares)

    assert pool.status() == later.status()


async def test_shares_that_are_taken_back_are_in_force_no_more(
    redis: Redis, pool: Pool
) -> None:
    """
    They follow the queue again, also for a store that starts anew.
    """
    shares, later = Shares(prefill=70, decode=30), loaded_pool(10)
    where = keys.shares("p"), keys.control("p")

    async with obeying(redis, pool):
        await wait_until(lambda: blocked_clients(redis))
        await publish(redis, *where, encode(shares), max_len=10)
        await wait_until(lambda: pool.division.shares_by == "order")
        await withdraw(redis, *where, encode(ForgetShares()), max_len=10)
        await wait_until(lambda: pool.division.shares_by == "queue")
    async with obeying(redis, later):
        await wait_until(lambda: blocked_clients(redis))

    assert later.division.shares_by == "queue"


def test_the_heartbeat_tells_of_process_and_pool(pool: Pool) -> None:
    """
    One heartbeat says that the store lives and how its blocks are used.
    """
    decoding(pool, "r1")

    values = snapshot(pool, "kvstore-1")

    status = decode_status(values[keys.pool("p")])
    assert isinstance(status, PoolStatus)
    assert (status.total, status.referenced, status.free) == (10, 2, 8)
    assert keys.worker("kvstore-1") in values


def test_a_store_without_a_model_has_no_pool_to_tell_of() -> None:
    """
    Until the weights are loaded gateways see a process, but no pool.
    """
    empty = Pool("p", PoolMemory(10, block_size=4, max_model_len=0), max_waiting=10)

    values = snapshot(empty, "kvstore-1")

    assert list(values) == [keys.worker("kvstore-1")]


async def blocked_clients(redis: Redis) -> int:
    return int((await redis.info("clients"))["blocked_clients"])
