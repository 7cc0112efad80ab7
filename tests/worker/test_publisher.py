"""What a worker tells gateways, from its engine's thread, on a real Redis."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import closing

import pytest
from jobs import prefill_job
from redis.asyncio import Redis

from mesh.post import Post
from mesh.streams import Mailbox
from protocol import keys
from protocol.messages import RequestId, TokenEvent, TokenEvents, decode_reply
from worker.exchange import Exchange, Outcome
from worker.publisher import Publisher
from worker.sequence import Sequence


@pytest.fixture
async def exchange() -> Exchange:
    return Exchange()


@pytest.fixture
async def publisher(redis_url: str, exchange: Exchange) -> AsyncIterator[Publisher]:
    with closing(Post(redis_url)) as post:
        yield Publisher(post, exchange, "p")


@pytest.fixture
async def mailbox(redis: Redis) -> Mailbox:
    mailbox = Mailbox(redis, "g1", keys.replies, lease_seconds=30)
    await mailbox.open()
    return mailbox


def said(index: int, gateway: str = "g1", num_running: int = 1) -> Outcome:
    return Outcome(events={gateway: [event(index)]}, num_running=num_running)


def event(index: int) -> TokenEvent:
    return TokenEvent(
        request_id=RequestId("r1"), generation=1, index=index, token_ids=(index,)
    )


def ended() -> Sequence:
    job = prefill_job("r1")
    return Sequence(
        request_id=job.request_id,
        generation=1,
        sampling=job.sampling,
        reply_to="g1",
        token_ids=list(job.token_ids),
        logprobs=[],
        num_prompt_tokens=job.num_prompt_tokens,
        num_computed_tokens=0,
        num_cached_tokens=0,
        block_size=4,
        block_table=[],
    )


async def replies(mailbox: Mailbox) -> list[TokenEvents]:
    bodies = [e.fields.get(b"body") for e in await mailbox.read(99)]
    found = [decode_reply(body) for body in bodies if body]
    return [reply for reply in found if isinstance(reply, TokenEvents)]


async def test_a_round_is_one_message(mailbox: Mailbox, publisher: Publisher) -> None:
    """
    The gateway gets each round's words as soon as they are said, and from which pool.
    """
    publisher.publish(said(0))
    publisher.publish(said(1))

    assert await replies(mailbox) == [
        TokenEvents(events=(event(0),), pool="p"),
        TokenEvents(events=(event(1),), pool="p"),
    ]


async def test_a_gateway_without_a_mailbox_is_gone(
    publisher: Publisher, exchange: Exchange
) -> None:
    """
    The round after the next one hears of it.
    """
    publisher.publish(said(0, "nobody"))
    publisher.publish(said(1, "nobody"))

    assert exchange.work(is_idle=False).gone == {"nobody"}


async def test_what_ended_is_told_before_it_is_released(
    mailbox: Mailbox, publisher: Publisher, exchange: Exchange
) -> None:
    """
    Only what Redis has is told; a worker with nothing more to compute waits for that.
    """
    sequence = ended()
    last = said(0, num_running=0)
    last.finished.append(sequence)

    publisher.publish(said(0))
    before = exchange.work(is_idle=False).told
    publisher.publish(last)

    assert before == []
    assert exchange.work(is_idle=False).told == [sequence]
    assert len(await replies(mailbox)) == 2


async def test_the_engine_waits_while_redis_is_away(
    redis: Redis, mailbox: Mailbox, publisher: Publisher
) -> None:
    """
    What is lost with a connection is told again before anything more is computed.
    """
    publisher.publish(said(0))
    await redis.client_kill_filter(_type="normal", skipme=True)

    await asyncio.to_thread(publisher.publish, said(1, num_running=0))

    assert (await replies(mailbox))[-1].events == (event(1),)
