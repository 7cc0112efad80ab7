"""What a gateway takes on: requests, connections, bytes and patience."""

import asyncio
from typing import Any

import aiohttp
import pytest
from fake_pool import FakePool, counting, silent
from waiting import wait_until

COMPLETIONS = "/v1/completions"
ASK = {"prompt": [5], "max_tokens": 2}


async def code_of(response: aiohttp.ClientResponse) -> str:
    return str((await response.json())["error"]["code"])


async def test_a_full_gateway_refuses_at_once(serve: Any, pool: FakePool) -> None:
    """Beyond the limit a request is a 503 with Retry-After; a free place is enough."""
    pool.script = silent
    client = await serve(max_open_requests=1)
    asking = asyncio.create_task(client.post(COMPLETIONS, json=ASK), name="asking")
    await wait_until(lambda: pool.jobs)

    async with client.post(COMPLETIONS, json=ASK) as refused:
        code = await code_of(refused)
    asking.cancel()
    await wait_until(lambda: pool.cancelled)
    pool.script = counting
    async with client.post(COMPLETIONS, json=ASK) as accepted:
        status = accepted.status

    assert (refused.status, code) == (503, "overloaded")
    assert int(refused.headers["Retry-After"]) > 0
    assert status == 200


async def test_each_choice_takes_a_place(serve: Any, pool: FakePool) -> None:
    """A call with more choices than there are places is refused, and holds none."""
    client = await serve(max_open_requests=3)

    async with client.post(COMPLETIONS, json={**ASK, "n": 4}) as refused:
        code = await code_of(refused)
    async with client.post(COMPLETIONS, json={**ASK, "n": 3}) as accepted:
        status = accepted.status

    assert (refused.status, code) == (503, "overloaded")
    assert status == 200
    assert len(pool.jobs) == 3


async def test_large_bodies_are_refused(serve: Any, pool: FakePool) -> None:
    """A body beyond the limit is a 413, however it is sent."""
    client = await serve(max_body_bytes=2000)

    async def pieces() -> Any:
        for _ in range(10):
            yield b"x" * 1000

    for data in (b"x" * 5000, pieces()):
        async with client.post(COMPLETIONS, data=data) as response:
            code = await code_of(response)
        assert (response.status, code) == (413, "body_too_large")
    assert pool.jobs == []


@pytest.mark.parametrize("path", [COMPLETIONS, "/v1/pools/default/shares"])
async def test_dripping_bodies_are_refused(
    serve: Any, pool: FakePool, path: str
) -> None:
    """A body that does not arrive in time is a 408, and the connection is closed."""
    client = await serve(body_timeout_seconds=0.1)
    sent_all = asyncio.Event()

    async def drip() -> Any:
        yield b'{"prompt":'
        await sent_all.wait()

    headers = {"Content-Type": "application/json"}
    async with client.post(path, data=drip(), headers=headers) as response:
        code = await code_of(response)
        sent_all.set()

    assert (response.status, code) == (408, "body_timeout")
    assert response.headers["Connection"] == "close"


async def test_connections_have_a_limit(
    serve: Any, pool: FakePool, started: Any
) -> None:
    """Beyond the limit a connection gets a 503 and is closed."""
    client = await serve(max_connections=1)
    async with client.get("/live") as first:
        await first.read()
    reader, writer = await asyncio.open_connection("127.0.0.1", started[-1].port)

    answer = await asyncio.wait_for(reader.read(), 5)

    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b'"code": "overloaded"' in answer
    writer.close()
    await writer.wait_closed()


async def test_idle_connections_are_closed(
    serve: Any, pool: FakePool, started: Any
) -> None:
    """A connection that says nothing is closed after its time."""
    await serve(keepalive_seconds=0.1)
    reader, writer = await asyncio.open_connection("127.0.0.1", started[-1].port)

    answer = await asyncio.wait_for(reader.read(), 5)

    assert answer == b""
    writer.close()
    await writer.wait_closed()


async def test_long_prompts_do_not_hold_up_others(serve: Any, pool: FakePool) -> None:
    """A text as long as the context allows is tokenised beside the loop."""
    client = await serve()
    body = {"prompt": " " * 9000 + "a", "max_tokens": 1}

    async with client.post(COMPLETIONS, json=body) as response:
        code = await code_of(response)

    assert (response.status, code) == (400, "context_length_exceeded")


async def test_metrics_count_requests_and_refusals(
    client: aiohttp.ClientSession, pool: FakePool
) -> None:
    """/metrics tells how requests ended and why others were refused."""
    async with client.post(COMPLETIONS, json=ASK) as response:
        assert response.status == 200
    async with client.post(COMPLETIONS, json={"prompt": []}) as response:
        assert response.status == 400

    async with client.get("/metrics") as response:
        text = await response.text()

    assert 'tandem_request_total{finish_reason="length"}' in text
    assert 'tandem_admission_rejections_total{reason="invalid_value"}' in text
    assert "tandem_time_to_first_token_seconds_count" in text
