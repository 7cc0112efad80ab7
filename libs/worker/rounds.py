"""The worker's main loop: its engine computes and tells on a thread of its own."""

import asyncio
from concurrent.futures import Executor
from functools import partial

import structlog

from mesh import metrics
from mesh.connect import LOST
from worker.core import Core
from worker.exchange import Exchange
from worker.inbox import Arrival, Inbox, by_consumer
from worker.publisher import Publisher

logger = structlog.get_logger()


def compute(core: Core, exchange: Exchange, publisher: Publisher) -> None:
    """The engine's thread: round after round, then everything is left to others."""
    try:
        while not exchange.is_stopping:
            work = exchange.work(is_idle=len(core.batch) == 0)
            outcome = core.round(work, partial(exchange.work, is_idle=False))
            publisher.publish(outcome)
            exchange.say(outcome)
            exchange.rest(core.rest_seconds)
        outcome = core.drain(exchange.work(is_idle=False))
        publisher.publish(outcome)
        exchange.say(outcome)
        core.drain(exchange.work(is_idle=False))  # releases what ended last
    finally:
        exchange.end()


async def settle(exchange: Exchange, inbox: Inbox) -> None:
    """Acknowledge jobs that the store knows of, until the last round."""
    while settled := await exchange.settled():
        await acknowledge(inbox.settle(settled.num_jobs, settled.num_running))
        metrics.NUM_REQUESTS_RUNNING.set(settled.num_running)


async def run(
    core: Core,
    exchange: Exchange,
    inbox: Inbox,
    publisher: Publisher,
    thread: Executor,
) -> None:
    """Compute until the exchange is stopped."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(settle(exchange, inbox), name="settle")
            await loop.run_in_executor(thread, compute, core, exchange, publisher)
    finally:
        exchange.stop()


async def acknowledge(arrivals: list[Arrival]) -> None:
    """The store knows who has these jobs: the streams may forget them.

    A job that cannot be acknowledged comes again, and the store says that it is gone.
    """
    try:
        for consumer, entries in by_consumer(arrivals):
            await consumer.acknowledge(entries)
    except LOST as error:
        logger.warning("jobs.unacknowledged", error=type(error).__name__)
