"""The worker's main loop: its engine computes on a thread, and the loop tells of it."""

import asyncio
from collections.abc import Coroutine
from concurrent.futures import Executor
from functools import partial
from itertools import groupby

import structlog
from redis.asyncio import Redis

from mesh import metrics
from mesh.connect import LOST
from worker.core import Core
from worker.exchange import Exchange
from worker.inbox import Arrival, Inbox
from worker.publisher import publish

logger = structlog.get_logger()


def compute(core: Core, exchange: Exchange) -> None:
    """The engine's thread: round after round, then everything is left to others."""
    try:
        while not exchange.is_stopping:
            work = exchange.work(is_idle=len(core.batch) == 0)
            exchange.say(core.round(work, partial(exchange.work, is_idle=False)))
            exchange.rest(core.rest_seconds)
        exchange.say(core.drain(exchange.work(is_idle=False)))
    finally:
        exchange.end()


async def tell(
    exchange: Exchange,
    inbox: Inbox,
    redis: Redis,
    stopping: asyncio.Event,
    pool: str = "",
) -> None:
    """Publish what the rounds say, until the last one; then acknowledge their jobs.

    Only sequences whose last event is out are brought back as told.
    """
    while outcome := await exchange.outcome():
        gone = await publish(redis, outcome.events, stopping, pool)
        await acknowledge(inbox.settle(outcome.num_jobs, outcome.num_running))
        metrics.NUM_REQUESTS_RUNNING.set(outcome.num_running)
        if gone or outcome.finished:
            exchange.bring(told=outcome.finished, gone=gone)


async def run(
    core: Core,
    exchange: Exchange,
    telling: Coroutine[None, None, None],
    thread: Executor,
) -> None:
    """Compute and tell until the exchange is stopped; what ended last is released."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(telling, name="tell")
            await loop.run_in_executor(thread, compute, core, exchange)
    finally:
        exchange.stop()
    work = exchange.work(is_idle=False)
    await loop.run_in_executor(thread, core.round, work)


async def acknowledge(arrivals: list[Arrival]) -> None:
    """The store knows who has these jobs: the streams may forget them.

    A job that cannot be acknowledged comes again, and the store says that it is gone.
    """
    try:
        for consumer, of_one in groupby(arrivals, key=lambda arrival: arrival.consumer):
            await consumer.acknowledge(arrival.entry for arrival in of_one)
    except LOST as error:
        logger.warning("jobs.unacknowledged", error=type(error).__name__)
