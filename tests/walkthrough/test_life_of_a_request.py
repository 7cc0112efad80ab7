"""The life of a request, step by step: read this first.

A real Redis and a real store; the model is an engine that counts upwards, so the answer
to "1 2 3" is "4 5 6 ...". Each test is the next step of the one before.
"""

import time
from collections.abc import Iterator
from contextlib import closing

import pytest
from direct_store import DirectStore
from jobs import loaded_pool
from redis.asyncio import Redis

from engine.counting import CountingEngine
from kvstore.announcer import Announcer
from kvstore.pool import Pool
from mesh.post import Post
from mesh.streams import Consumer, Entry, Mailbox, send
from protocol import keys
from protocol.messages import (
    DecodeJob,
    PrefillJob,
    RequestId,
    TokenEvent,
    TokenEvents,
    decode_job,
    decode_reply,
)
from protocol.sampling import SamplingParams
from protocol.wire import encode
from worker.batch import Batch
from worker.core import Core
from worker.exchange import Exchange, Outcome, Work
from worker.publisher import Publisher

REQUEST = PrefillJob(
    request_id=RequestId("cmpl-1"),
    token_ids=(1, 2, 3),
    num_prompt_tokens=3,
    sampling=SamplingParams(max_tokens=4, temperature=0),
    reply_to="gateway-1",
    deadline=time.time() + 600,
)


@pytest.fixture
def pool() -> Iterator[Pool]:
    """A store with a model loaded: ten KV blocks of four tokens."""
    pool = loaded_pool(10)
    yield pool
    pool.store.check()


@pytest.fixture
def prefill(pool: Pool) -> Core:
    return Core(
        DirectStore(pool, "prefill-1"),
        CountingEngine(100),
        Batch(max_num_batched_tokens=64),
        frozenset({"prefill"}),
    )


@pytest.fixture
def decode(pool: Pool) -> Core:
    return Core(
        DirectStore(pool, "decode-1"),
        CountingEngine(100),
        Batch(max_num_batched_tokens=64),
        frozenset({"decode"}),
    )


async def take(redis: Redis, stream: str, group: str) -> tuple[Consumer, Entry]:
    consumer = Consumer(redis, stream, group, "worker-1")
    await consumer.join()
    (entry,) = await consumer.take(1, block_seconds=1)
    return consumer, entry


def event(outcome: Outcome) -> TokenEvent:
    (event,) = outcome.events["gateway-1"]
    return event


async def test_1_the_gateway_asks_a_pool(redis: Redis) -> None:
    """
    A request becomes a PrefillJob on the pool's stream, which a prefill worker reads.
    """
    await send(redis, keys.prefill("p"), {"body": encode(REQUEST)})

    _, entry = await take(redis, keys.prefill("p"), keys.GROUP_OF_PREFILL)

    assert decode_job(entry.fields[b"body"]) == REQUEST


async def test_2_the_job_is_acknowledged_once_the_store_has_it(
    redis: Redis, pool: Pool, prefill: Core
) -> None:
    """
    From the admission on the store knows who computes what: the stream forgets the job.
    """
    await send(redis, keys.prefill("p"), {"body": encode(REQUEST)})
    consumer, entry = await take(redis, keys.prefill("p"), keys.GROUP_OF_PREFILL)

    prefill.round(Work([decode_job(entry.fields[b"body"])]))
    await consumer.acknowledge([entry])

    assert await redis.xlen(keys.prefill("p")) == 0
    assert pool.store
    assert pool.store.parked(REQUEST.request_id)


def test_3_prefill_computes_the_prompt_and_one_token(prefill: Core) -> None:
    """
    The prompt's K/V go into blocks that the store gave, and the first token comes out.
    """
    outcome = prefill.round(Work([REQUEST]))

    assert event(outcome).token_ids == (4,)
    assert event(outcome).index == 0


async def test_4_the_first_token_goes_to_the_gateway(
    redis: Redis, redis_url: str, prefill: Core
) -> None:
    """
    Tokens travel to the reply stream of the gateway that holds the client's connection.
    """
    mailbox = Mailbox(redis, "gateway-1", keys.replies, lease_seconds=5)
    await mailbox.open()
    outcome = prefill.round(Work([REQUEST]))

    with closing(Post(redis_url)) as post:
        Publisher(post, Exchange()).publish(outcome)

    letters = [e.fields[b"body"] for e in await mailbox.read(9) if b"body" in e.fields]
    assert decode_reply(letters[0]) == TokenEvents(events=(event(outcome),))


async def test_5_the_store_announces_what_was_parked(
    redis: Redis, pool: Pool, prefill: Core
) -> None:
    """
    Prefill parks the sequence; the store puts a DecodeJob on the pool's stream.
    """
    prefill.round(Work([REQUEST]))

    await Announcer(redis, pool).announce_all()

    _, entry = await take(redis, keys.decode("p"), keys.GROUP_OF_DECODE)
    job = decode_job(entry.fields[b"body"])
    assert isinstance(job, DecodeJob)
    assert job.request_id == REQUEST.request_id


def test_6_decode_adopts_and_goes_on(pool: Pool, prefill: Core, decode: Core) -> None:
    """
    The adopter continues at the next token on the same blocks: nothing was copied.
    """
    prefill.round(Work([REQUEST]))
    job = next_job(pool)

    outcome = decode.round(Work([job]))

    # The first event of an owner repeats what the gateway may not have got yet.
    assert event(outcome).token_ids == (4, 5)
    assert event(outcome).generation == job.generation + 1


def test_7_each_step_is_one_token_for_everyone(
    pool: Pool, prefill: Core, decode: Core
) -> None:
    """
    Step by step the sequence grows, until a stop token or the limit ends it.
    """
    prefill.round(Work([REQUEST]))
    decode.round(Work([next_job(pool)]))

    third = decode.round(Work())
    fourth = decode.round(Work())

    assert (event(third).token_ids, event(fourth).token_ids) == ((6,), (7,))
    assert event(fourth).finish_reason == "length"


def test_8_the_end_frees_the_blocks(pool: Pool, prefill: Core, decode: Core) -> None:
    """
    When the last event was published the sequence is released, and its blocks with it.
    """
    prefill.round(Work([REQUEST]))
    decode.round(Work([next_job(pool)]))
    decode.round(Work())
    last = decode.round(Work())

    decode.round(Work(told=last.finished))

    assert pool.store
    assert pool.store.blocks.num_available == 10


def test_9_a_death_is_a_handoff_like_any_other(
    pool: Pool, prefill: Core, decode: Core
) -> None:
    """
    When the owner dies the store announces the sequence, and the next worker goes on.
    """
    prefill.round(Work([REQUEST]))
    decode.round(Work([next_job(pool)]))

    pool.detach("decode-1")
    heir = Core(
        DirectStore(pool, "decode-2"), CountingEngine(100), Batch(64), decode.phases
    )
    outcome = heir.round(Work([next_job(pool)]))

    assert event(outcome).token_ids == (4, 5, 6)


def next_job(pool: Pool) -> DecodeJob:
    """What the store announces next."""
    assert pool.store
    record = pool.store.parked(pool.store.announcements.popleft())
    assert record
    job = record.next_job()
    assert isinstance(job, DecodeJob)
    return job
