"""Waiting that has an end."""

import asyncio

from mesh.timing import every, pause


async def test_a_pause_ends_at_once_when_stopping() -> None:
    """
    A process that is told to stop does not finish its nap first.
    """
    stopping = asyncio.Event()
    napping = asyncio.create_task(pause(3600, stopping), name="nap")

    stopping.set()

    await asyncio.wait_for(napping, 1)


async def test_a_pause_ends_by_itself() -> None:
    """
    A pause is no longer than it says.
    """
    stopping = asyncio.Event()

    await asyncio.wait_for(pause(0.01, stopping), 1)

    assert not stopping.is_set()


async def test_ticks_end_when_stopping() -> None:
    """
    A loop over ticks runs at once, then again and again, until told to stop.
    """
    stopping = asyncio.Event()
    ticks = 0

    async for _ in every(0.001, stopping):
        ticks += 1
        if ticks == 3:
            stopping.set()

    assert ticks == 3
