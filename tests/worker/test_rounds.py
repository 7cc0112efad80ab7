"""A worker from stream to stream: real Redis, its thread, a real store in between."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing

import pytest
from direct_store import DirectStore
from jobs import loaded_pool, prefill_job
from redis.asyncio import Redis
from waiting import wait_until

from engine.counting import CountingEngine
from kvstore.pool import Pool
from mesh.post import Post
from mesh.streams import Consumer, Mailbox, send
from protocol import keys
from protocol.messages import TokenEvents, decode_reply
from protocol.wire import encode
from worker.batch import Batch
from worker.core import Core
from worker.exchange import Exchange
from worker.inbox import Inbox, fill
from worker.publisher import Publisher
from worker.rounds import run


@pytest.fixture
def pool() -> Iterator[Pool]:
    pool = loaded_pool(2000)
    yield pool
    pool.store.check()


@pytest.fixture
async def mailbox(redis: Redis) -> Mailbox:
    mailbox = Mailbox(redis, "g1", keys.replies, lease_seconds=30)
    await mailbox.open()
    return mailbox


@asynccontextmanager
async def working(redis: Redis, redis_url: str, pool: Pool) -> AsyncIterator[None]:
    """A fused worker with an engine that counts, until the block ends."""
    core = Core(
        DirectStore(pool, "w"),
        CountingEngine(100),
        Batch(64),
        frozenset({"prefill", "decode"}),
    )
    exchange, stopping = Exchange(), asyncio.Event()
    post = Post(redis_url)
    inbox = Inbox(8, exchange)
    consumer = Consumer(redis, keys.prefill("p"), "prefill", "w")
    await consumer.join()
    with closing(post), ThreadPoolExecutor(1) as thread:
        async with asyncio.TaskGroup() as tasks:
            rounds = run(core, exchange, inbox, Publisher(post, exchange), thread)
            tasks.create_task(rounds, name="rounds")
            async with asyncio.TaskGroup() as reading:
                filling = fill(inbox, redis, consumer, 2.0, stopping)
                reading.create_task(filling, name="fill")
                yield
                stopping.set()
            exchange.stop()


async def answer(mailbox: Mailbox, request_id: str) -> list[int]:
    """The tokens of one request, as a gateway puts them together."""
    output: list[int] = []
    for _ in range(100):
        for entry in await mailbox.read(100):
            if b"body" not in entry.fields:
                continue
            reply = decode_reply(entry.fields[b"body"])
            assert isinstance(reply, TokenEvents)
            for event in reply.events:
                if event.request_id == request_id:
                    output.extend(event.token_ids[len(output) - event.index :])
                    if event.finish_reason:
                        return output
    raise AssertionError(f"no end: {output}")


async def test_a_job_becomes_tokens(
    redis: Redis, redis_url: str, pool: Pool, mailbox: Mailbox
) -> None:
    """
    From the job on its stream to the last token on the gateway's, and nothing is left.
    """
    async with working(redis, redis_url, pool):
        job = prefill_job("r1", num_tokens=3, max_tokens=20)
        await send(redis, keys.prefill("p"), {"body": encode(job)})
        tokens = await answer(mailbox, "r1")
        store = pool.store
        assert store
        await wait_until(lambda: store.blocks.num_available == 2000)

    assert tokens == list(range(4, 24))
    assert await redis.xlen(keys.prefill("p")) == 0


async def test_a_worker_that_stops_parks_what_it_has(
    redis: Redis, redis_url: str, pool: Pool, mailbox: Mailbox
) -> None:
    """
    After the drain every sequence is announced, and all that was computed was told.
    """
    async with working(redis, redis_url, pool):
        job = prefill_job("r1", num_tokens=3, max_tokens=7000)
        await send(redis, keys.prefill("p"), {"body": encode(job)})
        await mailbox.read(1)

    store = pool.store
    assert store
    assert list(store.announcements) == ["r1"]
    record = store.parked(job.request_id)
    assert record
    letters = [
        e.fields[b"body"] for e in await mailbox.read(9999) if b"body" in e.fields
    ]
    last = decode_reply(letters[-1])
    assert isinstance(last, TokenEvents)
    assert last.events[-1].token_ids[-1] == record.token_ids[-1]


async def test_a_dead_gateway_frees_its_sequences(
    redis: Redis, redis_url: str, pool: Pool, mailbox: Mailbox
) -> None:
    """
    When a gateway's mailbox is gone, nobody reads along: its sequences are dropped.
    """
    async with working(redis, redis_url, pool):
        job = prefill_job("r1", num_tokens=3, max_tokens=7000)
        await send(redis, keys.prefill("p"), {"body": encode(job)})
        await mailbox.read(1)
        await mailbox.close()
        store = pool.store
        assert store
        await wait_until(lambda: store.blocks.num_available == 2000)
