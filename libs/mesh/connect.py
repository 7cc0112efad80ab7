"""The one place that builds a Redis client: its timeouts and its retries."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

ANSWER_SECONDS = 5.0  # a command that takes longer has failed
LOST = (RedisConnectionError, RedisTimeoutError, OSError)
FAILED = (RedisError, OSError)  # lost, or refused: out of memory, read-only

# A blocking read must end well before the socket's own timeout does.
MAX_BLOCK_SECONDS = 1.0


@asynccontextmanager
async def connect(url: str) -> AsyncIterator["Redis"]:
    """A client for one process; commands are retried for about a second."""
    client = Redis.from_url(
        url,
        socket_timeout=ANSWER_SECONDS,
        socket_connect_timeout=ANSWER_SECONDS,
        retry=Retry(ExponentialBackoff(cap=0.5, base=0.02), retries=5),
        retry_on_error=list(LOST),
        protocol=2,
    )
    try:
        yield client
    finally:
        await client.aclose()
