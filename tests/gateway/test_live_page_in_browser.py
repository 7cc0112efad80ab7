"""The page as a person has it, in a real browser; skipped where there is none."""

import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
from browser import Tab, browser
from fake_pool import FakePool, decision, saying, silent, worker_status
from redis.asyncio import Redis
from waiting import wait_until

from mesh.streams import send
from protocol import keys
from protocol.messages import InForce
from protocol.wire import encode

SETTINGS = {"pools": "default,other", "slo_ttft_seconds": 0.5}
MARKUP = "<img id=evil src=x>"


@pytest.fixture
async def tab() -> AsyncIterator[Tab]:
    async with browser() as opened:
        yield opened


async def says(tab: Tab, selector: str, text: str) -> None:
    """It does so in the end."""

    async def is_said() -> bool:
        return await tab.text(selector) == text

    await wait_until(is_said, seconds=30)


async def test_a_person_sees_the_mesh(
    serve: Any, tab: Tab, redis: Redis, pool: FakePool, started: Any
) -> None:
    """
    Both pools, their processes and what was decided, text as text; and when the gateway
    goes and comes back, that.
    """
    await FakePool(redis, "other").announce()
    worker = worker_status("default", "decode").changed(
        host=MARKUP, in_force=InForce(device="cpu", dtype="bfloat16", threads=2)
    )
    await redis.set(keys.worker(worker.worker_id), encode(worker))
    for at in (1.0, 2.0):
        body = {"body": encode(decision(at=at))}
        await send(redis, keys.decisions("default"), body)
    await serve(**SETTINGS)

    await tab.open(started[0].url)
    await says(tab, "#state", "live")
    page = await tab.text("body")
    steered, idle = [await tab.text(f".pool:nth-child({at})") for at in (1, 2)]

    assert "free 100" in page
    assert "50/50 → 60/40, ttft fails" in steered
    assert "700 ms\t900 ms ▲\t30 ms\t20 ms" in steered
    assert "cpu bfloat16, 2 threads" in steered
    assert MARKUP in steered
    assert "Pool other" in idle
    assert "ttft fails" not in idle
    assert not re.findall(r"undefined|NaN|null|\[object|Infinity", page)
    assert await tab.value("document.getElementById('evil')") is None
    assert await tab.value("document.querySelectorAll('.charts path').length") == 6

    await started[0].stop()
    await says(tab, "#state", "lost, trying again")
    await serve(**SETTINGS, port=started[0].port)
    await says(tab, "#state", "live")
    assert tab.complaints == []


async def test_a_person_asks_and_stops(
    serve: Any, tab: Tab, pool: FakePool, started: Any
) -> None:
    """
    An answer is written as it comes, with what it took; one that is stopped is cancelled.
    """
    await serve()
    pool.script = saying(403, 404, 405)
    await tab.open(started[0].url)
    await says(tab, "#state", "live")

    await tab.value("form.limit.value = 8, form.send.click()")
    took = await wait_until(lambda: tab.text("#cost"))
    answer = await tab.text("#answer")
    pool.script = silent
    await tab.value("form.send.click()")
    await wait_until(lambda: len(pool.jobs) == 2)
    await tab.value("form.stop.click()")

    assert re.match(r"3 tokens; [\d.]+ m?s to the first, ", took)
    assert answer
    await wait_until(lambda: pool.cancelled == [pool.jobs[1].request_id])
    await says(tab, "#cost", "stopped")
    assert tab.complaints == []
