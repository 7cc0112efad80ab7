"""One question after another to Redis, over a connection that nobody else uses meanwhile.

For what is asked at every token: redis-py's client makes four times as much of it.
"""

import asyncio
from typing import Any

import hiredis
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from mesh.connect import ANSWER_SECONDS


class Line:
    """Opened by the first question, and by the next one after a failure.

    The connection is of the client's pool, which connects it and closes it at its end.
    """

    def __init__(self, redis: Redis) -> None:
        self._pool: Any = redis.connection_pool  # half of it has no types
        self._connection: Any = None
        self._end: _End | None = None

    async def ask(self, *question: str | bytes | int) -> Any:
        """The answer; LOST when Redis is away."""
        if self._end is None:
            self._connection = await self._pool.get_connection()
            self._end = _End(self._connection._writer.transport)
        try:
            # Its stub says tuple[x] and means tuple[x, ...].
            packed = hiredis.pack_command(question)  # type: ignore[arg-type]
            return await self._end.ask(packed)
        except BaseException:
            # An answer that still comes would be taken for that of a later question.
            self._end = None
            await self._connection.disconnect(nowait=True)
            await self._pool.release(self._connection)
            raise


class _End(asyncio.Protocol):
    """Our end of a connection that redis-py has opened."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._opener = transport.get_protocol()
        self._reader = hiredis.Reader(replyError=ResponseError)
        self._answer: asyncio.Future[Any] | None = None
        transport.set_protocol(self)

    async def ask(self, question: bytes) -> Any:
        loop = asyncio.get_running_loop()
        if self._transport.is_closing():
            raise RedisConnectionError("Redis hung up")
        self._answer = answer = loop.create_future()
        overdue = loop.call_later(
            ANSWER_SECONDS, self._fail, RedisTimeoutError("Redis does not answer")
        )
        try:
            self._transport.write(question)
            return await answer
        finally:
            overdue.cancel()

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        answer = self._reader.gets()
        if isinstance(answer, ResponseError):
            self._fail(answer)
        elif answer is not False and self._answer and not self._answer.done():
            self._answer.set_result(answer)

    def connection_lost(self, error: Exception | None) -> None:
        self._opener.connection_lost(error)  # who closes it waits for that
        self._fail(RedisConnectionError("Redis hung up"))

    def _fail(self, error: Exception) -> None:
        if self._answer and not self._answer.done():
            self._answer.set_exception(error)
