"""Questions to a real Redis over a connection of their own."""

import asyncio

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError
from waiting import wait_until

from mesh.connect import LOST
from mesh.line import Line


async def num_blocked(redis: Redis) -> int:
    return int((await redis.info("clients"))["blocked_clients"])


async def hang_up(redis: Redis, connection: int) -> None:
    await redis.client_kill_filter(_id=str(connection))


async def test_answers_come_in_order(redis: Redis) -> None:
    """
    One connection takes each question and brings its answer, however long that is.
    """
    line = Line(redis)
    long = b"x" * 1_000_000

    answers = [await line.ask("ECHO", word) for word in (b"a", long, b"b")]
    connections = {await line.ask("CLIENT", "ID") for _ in range(3)}

    assert answers == [b"a", long, b"b"]
    assert len(connections) == 1


async def test_what_redis_refuses_is_an_error(redis: Redis) -> None:
    """
    The question fails, and the next one does not.
    """
    line = Line(redis)

    with pytest.raises(ResponseError, match="unknown command"):
        await line.ask("NONSENSE")

    assert await line.ask("ECHO", b"a") == b"a"


async def test_a_connection_that_is_lost_is_made_anew(redis: Redis) -> None:
    """
    Lost between two questions or under one, that one fails and the next is answered.
    """
    line = Line(redis)

    await hang_up(redis, await line.ask("CLIENT", "ID"))
    with pytest.raises(LOST):
        await line.ask("ECHO", b"a")
    connection = await line.ask("CLIENT", "ID")
    waiting = asyncio.create_task(line.ask("BLPOP", "nothing", 5), name="waiting")
    await wait_until(lambda: num_blocked(redis))
    await hang_up(redis, connection)

    with pytest.raises(LOST):
        await waiting
    assert await line.ask("ECHO", b"b") == b"b"


async def test_an_answer_that_nobody_awaits_is_not_the_next_one_s(redis: Redis) -> None:
    """
    Who gave up on a question gets the answer of the next one.
    """
    line = Line(redis)
    waiting = asyncio.create_task(line.ask("BLPOP", "list", 5), name="waiting")
    await wait_until(lambda: num_blocked(redis))

    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await redis.rpush("list", b"late")

    assert await line.ask("ECHO", b"a") == b"a"
