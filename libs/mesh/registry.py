"""Who is alive: a key per process that expires unless its heart beats."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import cast

import structlog
from redis.asyncio import Redis

from mesh.connect import LOST
from mesh.timing import every

logger = structlog.get_logger()

BEATS_PER_LEASE = 4


async def heartbeat(
    redis: Redis,
    snapshot: Callable[[], dict[str, bytes]],
    lease_seconds: float,
    stopping: asyncio.Event,
) -> None:
    """Keep the snapshot's keys alive; they are gone at once when the process stops."""
    try:
        async for _ in every(lease_seconds / BEATS_PER_LEASE, stopping):
            try:
                await _beat(redis, snapshot(), lease_seconds)
            except LOST as error:
                logger.warning("heartbeat.missed", error=type(error).__name__)
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
