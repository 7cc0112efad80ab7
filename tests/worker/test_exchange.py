"""What passes between the event loop and the engine's thread, with a real thread."""

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from jobs import prefill_job

from protocol.messages import RequestId, TokenEvent
from worker.exchange import MAX_UNTOLD, Exchange, Outcome


@pytest.fixture
async def exchange() -> Exchange:
    return Exchange()


@pytest.fixture
async def thread() -> AsyncIterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


def said(index: int) -> Outcome:
    event = TokenEvent(
        request_id=RequestId("r1"), generation=1, index=index, token_ids=(index,)
    )
    return Outcome(events={"g1": [event]}, num_jobs=1, num_running=index)


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
    That the loop took an outcome is no work: an idle worker stays asleep.
    """
    loop = asyncio.get_running_loop()
    woken = threading.Event()

    def idle() -> None:
        exchange.say(Outcome())
        exchange.work(is_idle=True)
        woken.set()

    waiting = loop.run_in_executor(thread, idle)
    await exchange.outcome()
    was_woken = await loop.run_in_executor(None, lambda: woken.wait(0.05))
    exchange.bring(gone=["g1"])
    await waiting

    assert not was_woken


async def test_words_of_several_rounds_are_told_as_one(
    exchange: Exchange, thread: ThreadPoolExecutor
) -> None:
    """
    What the engine said while the loop was busy is one message, in its order.
    """
    await on_thread(thread, exchange, said(0), said(1), said(2))

    outcome = await exchange.outcome()

    assert outcome
    assert [event.index for event in outcome.events["g1"]] == [0, 1, 2]
    assert (outcome.num_jobs, outcome.num_running) == (3, 2)


async def test_the_engine_does_not_run_away(
    exchange: Exchange, thread: ThreadPoolExecutor
) -> None:
    """
    When nothing can be told, the thread waits after a few rounds.
    """
    loop = asyncio.get_running_loop()
    rounds = [said(index) for index in range(MAX_UNTOLD + 1)]
    full = threading.Event()

    def say_all() -> None:
        for outcome in rounds[:-1]:
            exchange.say(outcome)
        full.set()
        exchange.say(rounds[-1])

    saying = loop.run_in_executor(thread, say_all)
    await loop.run_in_executor(None, full.wait)
    waits = not saying.done()
    told = await exchange.outcome()
    await saying

    assert waits
    assert told
    assert told.num_jobs == MAX_UNTOLD


async def test_a_stop_ends_every_wait(
    exchange: Exchange, thread: ThreadPoolExecutor
) -> None:
    """
    A thread that waits for work, or to be heard, or rests, goes on when the worker stops.
    """
    exchange.stop()
    exchange.rest(seconds=60)

    await on_thread(thread, exchange, *(said(n) for n in range(MAX_UNTOLD + 3)))
    work = exchange.work(is_idle=True)

    assert not work


async def test_the_last_word_is_the_last(
    exchange: Exchange, thread: ThreadPoolExecutor
) -> None:
    """
    After the thread ended the loop still hears what it said, and then nothing.
    """
    await on_thread(thread, exchange, said(0))
    exchange.end()

    last = await exchange.outcome()
    nothing = await exchange.outcome()

    assert last
    assert nothing is None
