"""Sends planned requests: as many at once as there are clients, or each at its time."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from bench.measures import Outcome
from bench.workload import Planned

Ask = Callable[[Planned], Awaitable[Outcome]]


def ignore(_: Outcome) -> None:
    """Nobody looks at the progress."""


async def closed_loop(
    planned: Sequence[Planned],
    ask: Ask,
    num_clients: int,
    on_answer: Callable[[Outcome], None] = ignore,
) -> list[Outcome]:
    """So many clients; each asks again as soon as it was answered."""
    remaining = iter(planned)
    outcomes: list[Outcome] = []

    async def ask_on() -> None:
        for each in remaining:
            outcomes.append(await ask(each))
            on_answer(outcomes[-1])

    async with asyncio.TaskGroup() as tasks:
        for number in range(num_clients):
            tasks.create_task(ask_on(), name=f"client-{number}")
    return outcomes


async def open_loop(
    planned: Sequence[Planned],
    ask: Ask,
    on_answer: Callable[[Outcome], None] = ignore,
) -> list[Outcome]:
    """Each at its time, whether or not earlier ones were answered."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    outcomes: list[Outcome] = []

    async def ask_once(each: Planned) -> None:
        outcomes.append(await ask(each))
        on_answer(outcomes[-1])

    async with asyncio.TaskGroup() as tasks:
        for number, each in enumerate(sorted(planned, key=lambda one: one.at)):
            await asyncio.sleep(start + each.at - loop.time())
            tasks.create_task(ask_once(each), name=f"request-{number}")
    return outcomes
