"""Waiting that always has an end, and ends at once when the process is told to stop."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress


async def pause(seconds: float, stopping: asyncio.Event) -> None:
    """Wait that long, or until told to stop."""
    with suppress(TimeoutError):
        await asyncio.wait_for(stopping.wait(), seconds)


async def every(seconds: float, stopping: asyncio.Event) -> AsyncIterator[None]:
    """Tick, the first time at once, until told to stop."""
    while not stopping.is_set():
        yield
        await pause(seconds, stopping)
