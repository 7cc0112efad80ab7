"""Sends planned requests: as many at once as there are clients, or each at its time."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

from bench.measures import Outcome
from bench.workload import Planned

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


async def closed_loop(
    planned: Iterable[Asked],
    ask: Callable[[Asked], Awaitable[Answer]],
    num_clients: int,
) -> list[Answer]:
    """So many clients; each asks again as soon as it was answered."""
    remaining = iter(planned)
    answers: list[Answer] = []

    async def ask_on() -> None:
        for each in remaining:
            answers.append(await ask(each))

    async with asyncio.TaskGroup() as tasks:
        for number in range(num_clients):
            tasks.create_task(ask_on(), name=f"client-{number}")
    return answers


async def open_loop(
    planned: Iterable[Planned], ask: Callable[[Planned], Awaitable[Outcome]]
) -> list[Outcome]:
    """Each at its time, whether or not earlier ones were answered."""
    return await in_order(sorted(planned, key=lambda each: each.at), ask)


async def in_order(
    planned: Iterable[Planned], ask: Callable[[Planned], Awaitable[Outcome]]
) -> list[Outcome]:
    """The same of requests by their times, of which each is drawn when it is next."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    outcomes: list[Outcome] = []

    async def ask_once(each: Planned) -> None:
        outcomes.append(await ask(each))

    async with asyncio.TaskGroup() as tasks:
        for number, each in enumerate(planned):
            await asyncio.sleep(start + each.at - loop.time())
            tasks.create_task(ask_once(each), name=f"request-{number}")
    return outcomes
