"""Who is alive, on a real Redis."""

import asyncio

from redis.asyncio import Redis
from waiting import wait_until

from mesh.registry import heartbeat, living


async def test_a_beating_heart_is_seen(redis: Redis) -> None:
    """
    While a process lives, its latest snapshot is in the registry.
    """
    stopping = asyncio.Event()
    counts = iter(range(1, 10_000))

    async with asyncio.TaskGroup() as tasks:
        beat = heartbeat(
            redis, lambda: {"worker:1": b"%d" % next(counts)}, 0.1, stopping
        )
        tasks.create_task(beat, name="heartbeat")
        first = await wait_until(lambda: living(redis, "worker:*"))
        later = await wait_until(lambda: differs(redis, first))
        stopping.set()

    assert int(later[0]) > int(first[0])


async def test_news_are_told_before_the_next_beat(redis: Redis) -> None:
    """
    A change is in the registry soon, however slowly the heart beats.
    """
    stopping, news = asyncio.Event(), asyncio.Event()
    value = b"before"

    async with asyncio.TaskGroup() as tasks:
        beat = heartbeat(redis, lambda: {"worker:1": value}, 3600, stopping, news)
        tasks.create_task(beat, name="heartbeat")
        first = await wait_until(lambda: living(redis, "worker:*"))
        value = b"after"
        news.set()
        later = await wait_until(lambda: differs(redis, first), seconds=2)
        stopping.set()
        news.set()

    assert later == [b"after"]


async def test_a_process_that_stops_is_gone_at_once(redis: Redis) -> None:
    """
    A clean stop takes the process out of the registry, long before its lease ends.
    """
    stopping = asyncio.Event()

    async with asyncio.TaskGroup() as tasks:
        beat = heartbeat(redis, lambda: {"worker:1": b"x"}, 60, stopping)
        tasks.create_task(beat, name="heartbeat")
        await wait_until(lambda: living(redis, "worker:*"))
        stopping.set()

    assert await living(redis, "worker:*") == []


async def test_a_process_that_died_is_gone_after_its_lease(redis: Redis) -> None:
    """
    A heart that stops without a word is forgotten when its lease is over.
    """
    stopping = asyncio.Event()
    beat = asyncio.create_task(
        heartbeat(redis, lambda: {"worker:1": b"x"}, 0.1, stopping), name="heartbeat"
    )
    await wait_until(lambda: living(redis, "worker:*"))

    await redis.pexpire("worker:1", 50)
    stopping.set()
    await beat

    async def is_empty() -> bool:
        return await living(redis, "worker:*") == []

    await wait_until(is_empty)


async def test_nobody_is_alive_in_an_empty_registry(redis: Redis) -> None:
    """
    An empty registry is an answer, not an error.
    """
    assert await living(redis, "worker:*") == []


async def differs(redis: Redis, before: list[bytes]) -> list[bytes]:
    now = await living(redis, "worker:*")
    return now if now != before else []
