"""Jobs on their way from a real stream to the engine's thread."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from jobs import prefill_job
from redis.asyncio import Redis
from waiting import wait_until

from mesh.streams import Consumer, Mailbox, send
from protocol import keys
from protocol.messages import Failed, PrefillJob, decode_reply
from protocol.wire import encode
from worker.exchange import Exchange
from worker.inbox import Inbox, fill, keep


@pytest.fixture
async def exchange() -> Exchange:
    return Exchange()


@asynccontextmanager
async def filling(
    redis: Redis, inbox: Inbox, lease_seconds: float = 2.0
) -> AsyncIterator[None]:
    """A worker's inbox being filled from the stream "jobs"."""
    consumer = Consumer(redis, "jobs", "group", "me")
    await consumer.join()
    stopping = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(
            fill(inbox, redis, consumer, lease_seconds, stopping), name="fill"
        )
        tasks.create_task(keep(inbox, lease_seconds, stopping), name="keep")
        yield
        stopping.set()


async def put(redis: Redis, job: PrefillJob) -> None:
    fields = {"request_id": job.request_id, "reply_to": "g1", "body": encode(job)}
    await send(redis, "jobs", fields)


async def test_jobs_go_to_the_engine(redis: Redis, exchange: Exchange) -> None:
    """
    A job on the stream is work for the engine's next round.
    """
    inbox = Inbox(4, exchange)

    async with filling(redis, inbox):
        await put(redis, prefill_job("r1"))
        await wait_until(lambda: len(inbox) == 1)

    assert [job.request_id for job in exchange.work(is_idle=False).jobs] == ["r1"]


async def test_no_more_jobs_than_slots(redis: Redis, exchange: Exchange) -> None:
    """
    What this worker cannot start stays in the stream for another one.
    """
    inbox = Inbox(3, exchange)
    for number in range(5):
        await put(redis, prefill_job(f"r{number}"))

    async with filling(redis, inbox):
        await wait_until(lambda: inbox.free_slots == 0)

    assert len(exchange.work(is_idle=False).jobs) == 3


async def test_a_finished_sequence_makes_room(redis: Redis, exchange: Exchange) -> None:
    """
    Slots are jobs underway and sequences running: when these end, more jobs come.
    """
    inbox = Inbox(1, exchange)
    for number in range(2):
        await put(redis, prefill_job(f"r{number}"))

    async with filling(redis, inbox):
        await wait_until(lambda: len(inbox) == 1)
        settled = inbox.settle(num_jobs=1, num_running=1)
        full = inbox.free_slots
        inbox.settle(num_jobs=0, num_running=0)
        await wait_until(lambda: len(inbox) == 1)

    assert [arrival.job.request_id for arrival in settled] == ["r0"]
    assert full == 0


async def test_what_a_dead_worker_read_is_taken_over(
    redis: Redis, exchange: Exchange
) -> None:
    """
    A job that was read and never brought to the store is done by the next worker.
    """
    dead = Consumer(redis, "jobs", "group", "dead")
    await dead.join()
    await put(redis, prefill_job("r1"))
    await dead.take(1, block_seconds=0.01)
    inbox = Inbox(4, exchange)

    async with filling(redis, inbox, lease_seconds=0.05):
        await wait_until(lambda: len(inbox) == 1)


async def test_a_long_step_costs_no_job(redis: Redis, exchange: Exchange) -> None:
    """
    While an engine computes for longer than a lease, jobs that wait for it are delivered
    neither to another worker nor again to this one: they would be buried for it.
    """
    inbox = Inbox(4, exchange)
    other = Consumer(redis, "jobs", "group", "other")

    async with filling(redis, inbox, lease_seconds=1.0):
        await put(redis, prefill_job("r1"))
        await wait_until(lambda: len(inbox) == 1)
        for _ in range(25):
            await asyncio.sleep(0.1)
            assert await other.take_over(1, idle_seconds=1.0) == []
        waiting = len(inbox)

    assert waiting == 1
    assert await redis.xlen("tandem:dead-letters") == 0


async def test_what_is_no_job_is_buried_and_its_client_told(
    redis: Redis, exchange: Exchange
) -> None:
    """
    An entry that no worker can parse is a dead letter, and an error for its client.
    """
    mailbox = Mailbox(redis, "g1", keys.replies, lease_seconds=5)
    await mailbox.open()
    inbox = Inbox(4, exchange)
    fields = {"request_id": "r1", "reply_to": "g1", "body": b"\xc1"}

    async with filling(redis, inbox):
        await send(redis, "jobs", fields)
        await wait_until(lambda: redis.exists("tandem:dead-letters"))

    letters = [e.fields[b"body"] for e in await mailbox.read(9) if b"body" in e.fields]
    (failed,) = map(decode_reply, letters)
    assert isinstance(failed, Failed)
    assert failed.request_id == "r1"
    assert failed.reason.startswith("its job was given up: ")
    assert await redis.xlen("jobs") == 0
    assert len(inbox) == 0


async def test_an_entry_without_an_address_is_buried_all_the_same(
    redis: Redis, exchange: Exchange
) -> None:
    """
    Nonsense of which nobody knows the sender stops no worker.
    """
    inbox = Inbox(4, exchange)

    async with filling(redis, inbox):
        await send(redis, "jobs", {"hello": "world"})
        await put(redis, prefill_job("r1"))
        await wait_until(lambda: len(inbox) == 1)

    assert await redis.xlen("tandem:dead-letters") == 1
