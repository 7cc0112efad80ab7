"""A value that all must know: kept under a key, and told on a stream as it changes."""

from typing import cast

from redis.asyncio import Redis


async def publish(
    redis: Redis, key: str, stream: str, body: bytes, max_len: int
) -> None:
    """Keep the value for those who come later, and tell those who listen."""
    async with redis.pipeline(transaction=True) as transaction:
        transaction.set(key, body)
        transaction.xadd(stream, {"body": body}, maxlen=max_len)
        await transaction.execute()


async def withdraw(
    redis: Redis, key: str, stream: str, body: bytes, max_len: int
) -> None:
    """Keep no value, and tell those who listen that there is none."""
    async with redis.pipeline(transaction=True) as transaction:
        transaction.delete(key)
        transaction.xadd(stream, {"body": body}, maxlen=max_len)
        await transaction.execute()


async def kept(redis: Redis, key: str) -> bytes | None:
    """The value as it was last published, if it ever was."""
    return cast(bytes | None, await redis.get(key))
