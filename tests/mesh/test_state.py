"""A value that all must know, on a real Redis."""

from redis.asyncio import Redis

from mesh.state import kept, publish, withdraw
from mesh.streams import Tail


async def test_a_published_value_is_kept_and_told(redis: Redis) -> None:
    """
    Who listens hears each value; who comes later finds the last one.
    """
    before = await kept(redis, "state")
    listener = Tail(redis, "news", after=b"0")

    for value in (b"1", b"2"):
        await publish(redis, "state", "news", value, max_len=10)

    told = [entry.fields[b"body"] for entry in await listener.read(10)]
    assert (before, told, await kept(redis, "state")) == (None, [b"1", b"2"], b"2")


async def test_a_withdrawn_value_is_gone_and_told(redis: Redis) -> None:
    """
    Who listens hears of it; who comes later finds none.
    """
    await publish(redis, "state", "news", b"1", max_len=10)
    listener = Tail(redis, "news", after=b"0")

    await withdraw(redis, "state", "news", b"none", max_len=10)

    told = [entry.fields[b"body"] for entry in await listener.read(10)]
    assert (told, await kept(redis, "state")) == ([b"1", b"none"], None)
