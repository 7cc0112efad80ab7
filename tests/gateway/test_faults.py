"""What a client sees, and the pool hears, when something goes wrong."""

import asyncio
from typing import Any

import aiohttp
import pytest
from fake_pool import FakePool, silent, tokens
from redis.asyncio import Redis
from server_sent import events, first_event
from waiting import wait_until

from protocol.messages import Failed

COMPLETIONS = "/v1/completions"
LONG: dict[str, Any] = {"prompt": [5], "max_tokens": 50}


async def error_of(response: aiohttp.ClientResponse) -> dict[str, Any]:
    return dict((await response.json())["error"])


async def until_cancelled(pool: FakePool) -> None:
    """The pool is told once to drop its only request."""
    await wait_until(lambda: pool.cancelled == [pool.job.request_id])


async def test_leaving_a_stream_cancels_it(
    client: aiohttp.ClientSession, pool: FakePool
) -> None:
    """A client that goes away in mid-stream frees what its request holds."""
    pool.script = lambda job: [tokens(job, 403)]
    async with client.post(COMPLETIONS, json={**LONG, "stream": True}) as response:
        await first_event(response)

        response.close()

    await until_cancelled(pool)


async def test_leaving_before_the_first_token_cancels_too(
    client: aiohttp.ClientSession, pool: FakePool
) -> None:
    """A client need not have received anything to be missed."""
    pool.script = silent
    asking = asyncio.create_task(client.post(COMPLETIONS, json=LONG), name="asking")
    await wait_until(lambda: pool.jobs)

    asking.cancel()

    await until_cancelled(pool)


async def test_finished_requests_are_not_cancelled(
    client: aiohttp.ClientSession, pool: FakePool
) -> None:
    """Only the request that is left early is cancelled, not the one that ended."""
    async with client.post(COMPLETIONS, json={"prompt": [5], "max_tokens": 2}) as done:
        assert done.status == 200
    pool.script = silent
    asking = asyncio.create_task(client.post(COMPLETIONS, json=LONG), name="asking")
    await wait_until(lambda: len(pool.jobs) == 2)

    asking.cancel()

    await wait_until(lambda: pool.cancelled)
    assert pool.cancelled == [pool.jobs[1].request_id]


async def test_failure_before_the_first_token_is_an_error(
    client: aiohttp.ClientSession, pool: FakePool
) -> None:
    """A request that the pool gives up on is a 500 with its reason."""
    pool.script = lambda job: [Failed(request_id=job.request_id, reason="no memory")]

    async with client.post(COMPLETIONS, json={**LONG, "stream": True}) as response:
        error = await error_of(response)

    assert (response.status, error["code"]) == (500, "request_failed")
    assert error["message"] == "no memory"
    assert pool.cancelled == []


async def test_failure_in_mid_stream_is_an_event(
    client: aiohttp.ClientSession, pool: FakePool
) -> None:
    """A stream that cannot go on says so instead of just ending."""
    pool.script = lambda job: [
        tokens(job, 403),
        Failed(request_id=job.request_id, reason="no memory"),
    ]

    async with client.post(COMPLETIONS, json={**LONG, "stream": True}) as response:
        chunk, last = await events(response)

    assert chunk["choices"][0]["text"] == " Once"
    assert last["error"]["message"] == "no memory"


async def test_repeated_tokens_are_shown_once(
    client: aiohttp.ClientSession, pool: FakePool
) -> None:
    """After a worker's death its successor may repeat tokens; the client sees none."""
    pool.script = lambda job: [
        tokens(job, 403, 407),
        tokens(job, 407, 261, index=1),
        tokens(job, 403),
        tokens(job, 261, 378, index=2, finish="length"),
    ]

    async with client.post(COMPLETIONS, json=LONG) as response:
        answer = await response.json()

    assert answer["choices"][0]["text"] == " Once upon a time"
    assert answer["usage"]["completion_tokens"] == 4


async def test_a_missing_token_is_an_error(
    client: aiohttp.ClientSession, pool: FakePool
) -> None:
    """An answer with a hole is no answer, and the pool need not go on."""
    pool.script = lambda job: [tokens(job, 403), tokens(job, 261, index=2)]

    async with client.post(COMPLETIONS, json=LONG) as response:
        error = await error_of(response)

    assert (response.status, error["code"]) == (500, "request_failed")
    await until_cancelled(pool)


async def test_one_failing_choice_ends_the_others(
    client: aiohttp.ClientSession, pool: FakePool
) -> None:
    """Of several prompts the first failure answers for all; the rest is cancelled."""
    pool.script = lambda job: (
        [Failed(request_id=job.request_id, reason="no memory")]
        if job.token_ids == (6,)
        else []
    )

    async with client.post(COMPLETIONS, json={"prompt": [[5], [6]]}) as response:
        error = await error_of(response)

    assert error["message"] == "no memory"
    await wait_until(lambda: len(pool.cancelled) == 1)


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_silent_pool_ends_in_a_timeout(
    serve: Any, pool: FakePool, is_streamed: bool
) -> None:
    """No answer within the deadline is a 503 that may be tried again."""
    pool.script = silent
    client = await serve(request_timeout_seconds=0.2)

    async with client.post(
        COMPLETIONS, json={**LONG, "stream": is_streamed}
    ) as response:
        error = await error_of(response)

    assert (response.status, error["code"]) == (503, "timeout")
    assert int(response.headers["Retry-After"]) > 0
    await until_cancelled(pool)


async def test_a_timeout_in_mid_stream_is_an_event(serve: Any, pool: FakePool) -> None:
    """A stream that outlives its deadline ends with an error event."""
    pool.script = lambda job: [tokens(job, 403)]
    client = await serve(request_timeout_seconds=0.5)

    async with client.post(COMPLETIONS, json={**LONG, "stream": True}) as response:
        *_, last = await events(response)

    assert last["error"]["code"] == "timeout"
    await until_cancelled(pool)


async def test_requests_before_the_pool_is_known_are_refused(serve: Any) -> None:
    """A gateway without a pool is alive, not ready, and says when to come back."""
    client = await serve(is_ready=False)

    async with client.get("/live") as live, client.get("/ready") as ready:
        statuses = live.status, ready.status
    async with client.post(COMPLETIONS, json=LONG) as response:
        error = await error_of(response)

    assert statuses == (200, 503)
    assert (response.status, error["code"]) == (503, "unavailable")
    assert int(response.headers["Retry-After"]) > 0


async def test_a_redis_that_refuses_jobs_is_a_503(
    client: aiohttp.ClientSession, pool: FakePool, redis: Redis
) -> None:
    """When the queue takes no job the client may try again, and later succeeds."""
    await redis.config_set("maxmemory", 1)
    try:
        async with client.post(COMPLETIONS, json=LONG) as refused:
            error = await error_of(refused)
    finally:
        await redis.config_set("maxmemory", 0)
    async with client.post(COMPLETIONS, json=LONG) as accepted:
        status = accepted.status

    assert (refused.status, error["code"]) == (503, "unavailable")
    assert status == 200


async def test_streams_survive_the_loss_of_every_connection_to_redis(
    client: aiohttp.ClientSession, pool: FakePool, redis: Redis
) -> None:
    """The reader connects again and misses nothing."""
    pool.script = lambda job: [tokens(job, 403)]
    async with client.post(COMPLETIONS, json={**LONG, "stream": True}) as response:
        await first_event(response)

        await redis.client_kill_filter(_type="normal", skipme=True)
        last = tokens(pool.job, 407, 261, index=1, finish="length")
        await pool.say(last, pool.job)
        *_, chunk = await events(response)

    assert chunk["choices"][0]["finish_reason"] == "length"


async def test_a_redis_that_comes_back_empty_is_a_pause(
    client: aiohttp.ClientSession, pool: FakePool, redis: Redis
) -> None:
    """
    What was posted to the lost mailbox may be missing: the request is sent again, with a
    new address, and its next owner repeats everything.
    """
    pool.script = lambda job: [tokens(job, 403, 407)]
    async with client.post(COMPLETIONS, json={**LONG, "stream": True}) as response:
        await first_event(response)
        pool.script = lambda job: [tokens(job, 403, 407, 411, finish="stop")]

        await redis.flushall()

        *_, last = await events(response)

    first, second = pool.jobs
    assert last["choices"][0]["finish_reason"] == "stop"
    assert second.request_id == first.request_id
    assert second.token_ids == (*first.token_ids, 403, 407)
    assert second.reply_to != first.reply_to
    assert (first.attempt, second.attempt) == (0, 1)


async def test_stopping_ends_streams_with_an_event(
    client: aiohttp.ClientSession, pool: FakePool, started: Any
) -> None:
    """Who is being answered when the gateway stops is told, and the pool as well."""
    pool.script = lambda job: [tokens(job, 403)]
    async with client.post(COMPLETIONS, json={**LONG, "stream": True}) as response:
        await first_event(response)

        started[-1].stopping.set()
        *_, last = await events(response)

    assert last["error"]["code"] == "unavailable"
    await until_cancelled(pool)


async def test_a_new_store_gets_the_continuation(
    client: aiohttp.ClientSession, pool: FakePool
) -> None:
    """When the store died, what its clients already have becomes part of the prompt."""
    pool.script = lambda job: [tokens(job, 403, 407)]
    async with client.post(COMPLETIONS, json={**LONG, "stream": True}) as response:
        await first_event(response)

        await pool.announce(store="store-2")
        await wait_until(lambda: len(pool.jobs) == 2)

        response.close()

    first, second = pool.jobs
    assert second.request_id == first.request_id
    assert second.token_ids == (*first.token_ids, 403, 407)
    assert second.num_prompt_tokens == first.num_prompt_tokens


async def test_a_continuation_is_asked_for_as_the_request_was(
    client: aiohttp.ClientSession, pool: FakePool
) -> None:
    """It keeps its salt, and brings along how likely its output is so far."""
    pool.script = lambda job: [tokens(job, 403, 407, logprobs=(-0.5, -1.5))]
    body = {**LONG, "cache_salt": "tenant-1", "best_of": 2}
    asking = asyncio.create_task(client.post(COMPLETIONS, json=body), name="asking")
    await wait_until(lambda: len(pool.jobs) == 2)

    await pool.announce(store="store-2")
    await wait_until(lambda: len(pool.jobs) == 4)

    for again in pool.jobs[2:]:
        assert again.cache_salt == "tenant-1"
        assert again.logprobs == (-0.5, -1.5)
    asking.cancel()


async def test_the_same_store_is_not_asked_twice(
    client: aiohttp.ClientSession, pool: FakePool
) -> None:
    """A heartbeat of the store that a request is at is no reason to submit it again."""
    pool.script = lambda job: [tokens(job, 403)]
    async with client.post(COMPLETIONS, json={**LONG, "stream": True}) as response:
        await first_event(response)
        await pool.announce()
        await pool.say(tokens(pool.job, 407, index=1, finish="length"), pool.job)

        received = await events(response)

    assert received
    assert len(pool.jobs) == 1
