"""Events find the request that waits for them, each token once."""

import asyncio

import pytest
from fake_pool import FakePool
from redis.asyncio import Redis

from gateway.errors import RequestFailed
from gateway.replies import Inbox, Replies
from mesh.streams import Mailbox
from protocol.messages import Failed, FinishReason, RequestId, TokenEvent, TokenEvents

ID = RequestId("r1")


def event(
    index: int, *token_ids: int, finish: FinishReason | None = None
) -> TokenEvent:
    return TokenEvent(
        request_id=ID,
        generation=0,
        index=index,
        token_ids=token_ids,
        finish_reason=finish,
    )


async def test_repeated_tokens_are_dropped() -> None:
    """An event may repeat earlier tokens: only what is new arrives."""
    inbox = Inbox(max_tokens=10)

    for repeated in (event(0, 5, 6), event(0, 5, 6), event(1, 6, 7), event(0, 5)):
        inbox.accept(repeated)

    assert (await inbox.take()).token_ids == [5, 6, 7]


async def test_log_probabilities_stay_with_their_tokens() -> None:
    """Of a repeated event only what belongs to new tokens is taken."""
    inbox = Inbox(max_tokens=10)

    inbox.accept(event(0, 5, 6)._replace(logprobs=(-0.5, -1.0)))
    inbox.accept(event(1, 6, 7)._replace(logprobs=(-9.0, -1.5)))

    assert inbox.token_ids == [5, 6, 7]
    assert inbox.logprobs == [-0.5, -1.0, -1.5]


async def test_events_that_wait_are_joined() -> None:
    """What came since the last look arrives at once, with the end if it came too."""
    inbox = Inbox(max_tokens=10)
    inbox.accept(event(0, 5))
    inbox.accept(event(1, 6, finish="stop"))

    arrival = await inbox.take()

    assert (arrival.token_ids, arrival.finish_reason) == ([5, 6], "stop")
    assert inbox.has_ended


async def test_an_end_repeated_without_news_is_still_an_end() -> None:
    """The last event counts even if its tokens are all known."""
    inbox = Inbox(max_tokens=10)
    inbox.accept(event(0, 5, 6))
    await inbox.take()

    inbox.accept(event(1, 6, finish="length"))

    assert (await inbox.take()).finish_reason == "length"


async def test_a_missing_token_fails_the_request_after_those_before_it() -> None:
    """Tokens before a gap still arrive; then the request fails."""
    inbox = Inbox(max_tokens=10)
    inbox.accept(event(0, 5))
    inbox.accept(event(2, 7))

    assert (await inbox.take()).token_ids == [5]
    with pytest.raises(RequestFailed, match="lost"):
        await inbox.take()
    assert not inbox.has_ended


async def test_an_inbox_holds_no_more_than_was_asked_for() -> None:
    """Tokens beyond max_tokens are a failure, not a growing queue."""
    inbox = Inbox(max_tokens=2)

    inbox.accept(event(0, 5, 6, 7))

    with pytest.raises(RequestFailed):
        await inbox.take()


async def test_events_of_unknown_requests_are_ignored() -> None:
    """Who has left gets nothing, and nobody else gets it either."""
    replies = Replies()
    with replies.subscribe(ID, max_tokens=3):
        pass

    replies.dispatch(TokenEvents(events=(event(0, 5),)))
    replies.dispatch(Failed(request_id=ID, reason="late"))


async def test_malformed_letters_do_not_stop_the_reader(redis: Redis) -> None:
    """After an unreadable entry the next one still arrives."""
    replies, mailbox = Replies(), Mailbox(redis, "mailbox", str, lease_seconds=5)
    stopping = asyncio.Event()
    await mailbox.open()
    reading = asyncio.create_task(
        replies.read(mailbox, not_lost, stopping), name="reader"
    )
    with replies.subscribe(ID, max_tokens=3) as inbox:
        await redis.xadd("mailbox", {"body": b"\xc1 no message"})
        await redis.xadd("mailbox", {"other": b""})
        await FakePool(redis).say_to("mailbox", TokenEvents(events=(event(0, 5),)))

        arrival = await asyncio.wait_for(inbox.take(), 5)

    assert arrival.token_ids == [5]
    stopping.set()
    await reading


def not_lost() -> None:
    raise AssertionError("the mailbox was lost")


async def test_a_lost_mailbox_is_another_one(redis: Redis) -> None:
    """
    When Redis lost the mailbox its reader has another one, and knows that letters to
    the old one may be lost.
    """
    replies, mailbox = Replies(), Mailbox(redis, "mailbox", str, lease_seconds=5)
    stopping, lost = asyncio.Event(), asyncio.Event()
    reading = asyncio.create_task(
        replies.read(mailbox, lost.set, stopping), name="reader"
    )
    await replies.can_hear.wait()

    await redis.flushall()

    async with asyncio.timeout(5):
        await lost.wait()
    assert mailbox.name != "mailbox"
    assert await redis.exists(mailbox.name)
    assert not await redis.exists("mailbox")
    stopping.set()
    await reading
