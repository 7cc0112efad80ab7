"""What passes between the event loop and the engine's thread, with a real thread."""

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from jobs import prefill_job

from worker.exchange import Exchange, Outcome, Settled


@pytest.fixture
async def exchange() -> Exchange:
    return Exchange()


@pytest.fixture
async def thread() -> AsyncIterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


async def on_thread(
    thread: ThreadPoolExecutor, exchange: Exchange, *outcomes: Outcome
) -> None:
    def say_all() -> None:
        for outcome in outcomes:
            exchange.say(outcome)

    await asyncio.get_running_loop().run_in_executor(thread, say_all)


async def test_jobs_reach_the_thread_once(exchange: Exchange) -> None:
    """
    What the loop brought is the next round's work, and nobody else's.
    """
    job = prefill_job()
    exchange.bring(jobs=[job])

    first = exchange.work(is_idle=False)
    second = exchange.work(is_idle=False)

    assert first.jobs == [job]
    assert not second


async def test_an_idle_thread_wakes_for_work(
    exchange: Exchange, thread: ThreadPoolExecutor
) -> None:
    """
    A thread without sequences sleeps until the loop brings something.
    """
    loop = asyncio.get_running_loop()
    waiting = loop.run_in_executor(thread, lambda: exchange.work(is_idle=True))

    exchange.bring(gone=["g1"])

    assert (await waiting).gone == {"g1"}


async def test_an_idle_thread_is_not_woken_by_its_own_words(
    exchange: Exchange, thread: ThreadPoolExecutor
) -> None:
    """
    That the loop heard of a round is no work: an idle worker stays asleep.
    """
    loop = asyncio.get_running_loop()
    woken = threading.Event()

    def idle() -> None:
        exchange.say(Outcome(num_running=1))
        exchange.work(is_idle=True)
        woken.set()

    waiting = loop.run_in_executor(thread, idle)
    await exchange.settled()
    was_woken = await loop.run_in_executor(None, lambda: woken.wait(0.05))
    exchange.bring(gone=["g1"])
    await waiting

    assert not was_woken


async def test_jobs_of_several_rounds_are_settled_as_one(
    exchange: Exchange, thread: ThreadPoolExecutor
) -> None:
    """
    What the store took while the loop was busy is one answer.
    """
    rounds = [Outcome(num_jobs=1, num_running=n) for n in range(3)]
    await on_thread(thread, exchange, *rounds)

    settled = await exchange.settled()

    assert settled == Settled(num_jobs=3, num_running=2)


async def test_a_round_without_jobs_does_not_wake_the_loop(
    exchange: Exchange, thread: ThreadPoolExecutor
) -> None:
    """
    The next tokens of who runs already are none of the loop's business.
    """
    await on_thread(thread, exchange, Outcome(num_jobs=1, num_running=1))
    await exchange.settled()

    await on_thread(thread, exchange, *[Outcome(num_running=1)] * 3)
    settling = asyncio.create_task(exchange.settled())
    await on_thread(thread, exchange, Outcome(num_running=0))

    assert await settling == Settled(num_jobs=0, num_running=0)


def test_a_stop_ends_every_wait(exchange: Exchange) -> None:
    """
    A thread that waits for work, or rests, goes on when the worker stops.
    """
    exchange.stop()
    exchange.rest(seconds=60)

    work = exchange.work(is_idle=True)

    assert not work


async def test_the_last_word_is_the_last(
    exchange: Exchange, thread: ThreadPoolExecutor
) -> None:
    """
    After the thread ended the loop still hears what it said, and then nothing.
    """
    await on_thread(thread, exchange, Outcome(num_jobs=1))
    exchange.end()

    last = await exchange.settled()
    nothing = await exchange.settled()

    assert last == Settled(num_jobs=1, num_running=0)
    assert nothing is None
