"""Letters that a thread sends, on a real Redis."""

from collections.abc import AsyncIterator
from contextlib import closing

import pytest
from redis.asyncio import Redis

from mesh.connect import LOST
from mesh.post import Post
from mesh.streams import Mailbox


@pytest.fixture
async def mailbox(redis: Redis) -> Mailbox:
    mailbox = Mailbox(redis, "reader", str, lease_seconds=30)
    await mailbox.open()
    return mailbox


@pytest.fixture
async def post(redis_url: str) -> AsyncIterator[Post]:
    with closing(Post(redis_url)) as post:
        yield post


async def letters(mailbox: Mailbox) -> list[bytes]:
    return [e.fields[b"n"] for e in await mailbox.read(99) if b"n" in e.fields]


async def test_letters_arrive_in_order(mailbox: Mailbox, post: Post) -> None:
    """
    Each is sent at once; that it arrived is known before the next one goes.
    """
    gone = set[str]()
    for number in b"1", b"2", b"3":
        post.send({"reader": {"n": number}})
        gone |= post.arrived()

    assert await letters(mailbox) == [b"1", b"2", b"3"]
    assert not gone


async def test_who_has_no_mailbox_is_gone(
    redis: Redis, mailbox: Mailbox, post: Post
) -> None:
    """
    Of several addressees those are named whose stream does not exist, nor is it made.
    """
    post.send({"nobody": {"n": b"1"}, "reader": {"n": b"1"}, "none": {"n": b"1"}})

    assert post.arrived() == {"nobody", "none"}
    assert await letters(mailbox) == [b"1"]
    assert not await redis.exists("nobody")


async def test_what_did_not_arrive_is_repeated(
    redis: Redis, mailbox: Mailbox, post: Post
) -> None:
    """
    When the connection breaks, the letters go again over another one.
    """
    post.send({"reader": {"n": b"1"}})
    post.arrived()
    await redis.client_kill_filter(_type="normal", skipme=True)

    post.send({"reader": {"n": b"2"}})
    with pytest.raises(LOST):
        post.arrived()
    post.repeat()

    assert post.arrived() == set()
    assert (await letters(mailbox))[-1] == b"2"
