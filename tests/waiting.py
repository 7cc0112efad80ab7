"""Waiting in tests: for a condition, never for a while."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

POLL_SECONDS = 0.01


async def wait_until(
    condition: Callable[[], Awaitable[T] | T], seconds: float = 10.0
) -> T:
    """The condition's first true value; an AssertionError if none comes in time."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if isinstance(value, Awaitable):
            value = await value
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {seconds} s: {condition}"
        await asyncio.sleep(POLL_SECONDS)
