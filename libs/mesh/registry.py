"""Who is alive: a key per process that expires unless its heart beats."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import cast

import structlog
from redis.asyncio import Redis

from mesh.connect import LOST
from mesh.timing import pause

logger = structlog.get_logger()

BEATS_PER_LEASE = 4
# Between two beats, however much happens: gateways look no more often.
SHORTEST_SECONDS = 0.2


async def heartbeat(
    redis: Redis,
    snapshot: Callable[[], dict[str, bytes]],
    lease_seconds: float,
    stopping: asyncio.Event,
    news: asyncio.Event | None = None,
) -> None:
    """Keep the snapshot's keys alive; they are gone at once when the process stops.

    With `news` a change after a quiet while is told at once, not only with the next
    beat; whoever sets `stopping` sets it too.
    """
    try:
        while not stopping.is_set():
            if news is not None:
                news.clear()
            try:
                await _beat(redis, snapshot(), lease_seconds)
            except LOST as error:
                logger.warning("heartbeat.missed", error=type(error).__name__)
            seconds = lease_seconds / BEATS_PER_LEASE
            if news is not None:
                await pause(min(seconds, SHORTEST_SECONDS), stopping)
            await pause(seconds, news or stopping)
    finally:
        with suppress(*LOST):  # then the keys end with their lease
            await redis.delete(*snapshot())


async def _beat(redis: Redis, values: dict[str, bytes], lease_seconds: float) -> None:
    async with redis.pipeline(transaction=False) as pipeline:
        for key, value in values.items():
            pipeline.set(key, value, px=int(lease_seconds * 1000))
        await pipeline.execute()


async def living(redis: Redis, pattern: str) -> list[bytes]:
    """The snapshots of everyone alive whose key matches."""
    keys = [key async for key in redis.scan_iter(match=pattern, count=500)]
    if not keys:
        return []
    values = cast(list[bytes | None], await redis.mget(keys))
    return [value for value in values if value is not None]
