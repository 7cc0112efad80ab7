"""A gateway before several pools: where requests go, and whither when a pool dies."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import aiohttp
import pytest
from fake_pool import FakePool, tokens
from redis.asyncio import Redis
from server_sent import events, first_event
from waiting import wait_until

COMPLETIONS = "/v1/completions"
LONG: dict[str, Any] = {"prompt": [5], "max_tokens": 50, "stream": True}
SETTINGS = {"pools": "a,b", "lease_seconds": 0.2}


@pytest.fixture
async def pools(redis: Redis) -> AsyncIterator[list[FakePool]]:
    """Two pools that say one token and nothing more."""
    fakes = [FakePool(redis, "a"), FakePool(redis, "b")]
    running = [asyncio.create_task(fake.run(), name=fake.name) for fake in fakes]
    for fake in fakes:
        fake.script = lambda job: [tokens(job, 403)]
        await fake.announce()
    yield fakes
    for fake, task in zip(fakes, running, strict=True):
        fake.stopping.set()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_requests_are_shared_out(serve: Any, pools: list[FakePool]) -> None:
    """
    Two at once go to different pools; a third goes where its prefix is.
    """
    client = await serve(**SETTINGS)
    begins = [{**LONG, "prompt": [number, *range(40)]} for number in (5, 6, 6)]
    responses = []

    for body in begins:
        response = await client.post(COMPLETIONS, json=body)
        await first_event(response)
        responses.append(response)

    assert [len(pool.jobs) for pool in pools] == [1, 2]
    for response in responses:
        response.close()
    await wait_until(lambda: [len(pool.cancelled) for pool in pools] == [1, 2])


async def test_a_dead_pool_s_requests_go_on_in_another(
    serve: Any, pools: list[FakePool]
) -> None:
    """
    What its client has becomes part of the prompt; and who may still compute the request
    in the old place is told to leave it.
    """
    client = await serve(**SETTINGS)
    async with client.post(COMPLETIONS, json=LONG) as response:
        await first_event(response)
        pools[1].script = lambda job: [tokens(job, 407, index=1, finish="stop")]

        await pools[0].vanish()

        *_, last = await events(response)

    (job,), (again,) = pools[0].jobs, pools[1].jobs
    assert last["choices"][0]["finish_reason"] == "stop"
    assert (again.request_id, again.attempt) == (job.request_id, 1)
    assert again.token_ids == (*job.token_ids, 403)
    await wait_until(lambda: pools[0].cancelled == [job.request_id])
    assert pools[1].cancelled == []


async def test_a_dead_pool_gets_no_requests(serve: Any, pools: list[FakePool]) -> None:
    """
    As soon as a pool is not heard any more, the others get what comes.
    """
    client = await serve(**SETTINGS)
    await pools[0].vanish()
    await wait_until(lambda: is_one_ready(client))
    pools[1].script = lambda job: [tokens(job, 403, finish="stop")]

    async with client.post(COMPLETIONS, json=LONG) as response:
        await events(response)

    assert [len(pool.jobs) for pool in pools] == [0, 1]


async def is_one_ready(client: aiohttp.ClientSession) -> bool:
    """Of both pools, as the gateway tells."""
    async with client.get("/v1/pools") as response:
        return sum(pool["ready"] for pool in (await response.json())["data"]) == 1
