"""The routes of who runs a pool."""

import json
from typing import Any

import aiohttp
import pytest
from fake_pool import FakePool
from redis.asyncio import Redis
from waiting import wait_until

from protocol import keys
from protocol.messages import ForgetShares, Shares, decode_shares

SHARES = "/v1/pools/default/shares"
AS_JSON = {"Content-Type": "application/json"}
ASKED = {"prefill": 60, "decode": 55}


async def test_shares_are_shown(client: aiohttp.ClientSession, pool: FakePool) -> None:
    """What is in force, and of each worker what it had in its last step."""
    async with client.get(SHARES) as response:
        shown = await response.json()

    assert shown["shares"] == {"prefill": 100, "decode": 100}
    assert shown["by"] == "start"
    assert {worker["worker_id"] for worker in shown["workers"]} == {
        "prefill-default",
        "decode-default",
    }
    assert all(worker["percent"] == 100 for worker in shown["workers"])


async def test_shares_are_changed(
    client: aiohttp.ClientSession, pool: FakePool, redis: Redis
) -> None:
    """The pool is told, and the value is kept for a store that starts anew."""
    async with client.post(SHARES, json=ASKED) as response:
        answer = await response.json()

    await wait_until(lambda: pool.shares)
    assert (response.status, answer) == (200, {"shares": ASKED})
    assert pool.shares == [Shares(**ASKED)]
    assert decode_shares(await redis.get(keys.shares("default"))) == Shares(**ASKED)


async def test_shares_are_taken_back(
    client: aiohttp.ClientSession, pool: FakePool, redis: Redis
) -> None:
    """The pool is told, and nothing is kept for a store that starts anew."""
    async with client.post(SHARES, json=ASKED), client.delete(SHARES) as response:
        answer = await response.json()

    await wait_until(lambda: len(pool.shares) == 2)
    assert (response.status, answer) == (200, {"shares": None})
    assert pool.shares[-1] == ForgetShares()
    assert await redis.get(keys.shares("default")) is None


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ("nonsense", None),
        ("[]", None),
        ('{"prefill": 60}', "decode"),
        ('{"prefill": 0, "decode": 50}', "prefill"),
        ('{"prefill": 60, "decode": 101}', "decode"),
        ('{"prefill": "60", "decode": 50}', "prefill"),
        ('{"prefill": 60, "decode": 50, "draft": 1}', "draft"),
    ],
)
async def test_shares_that_are_none(
    client: aiohttp.ClientSession, pool: FakePool, body: str, param: str | None
) -> None:
    """A wrong body is refused at the door, with the name of the field."""
    async with client.post(SHARES, data=body, headers=AS_JSON) as response:
        error = (await response.json())["error"]

    assert (response.status, error["param"]) == (400, param)
    assert pool.shares == []


async def test_shares_of_another_type_are_refused(
    client: aiohttp.ClientSession, pool: FakePool
) -> None:
    """A page of another site can make a browser send plain text here, but no JSON."""
    async with client.post(SHARES, data=json.dumps(ASKED)) as response:
        error = (await response.json())["error"]

    assert response.status == 400
    assert "application/json" in error["message"]
    assert pool.shares == []


@pytest.mark.parametrize("ask", ["get", "post", "delete"])
async def test_another_pool_is_unknown(
    client: aiohttp.ClientSession, pool: FakePool, ask: str
) -> None:
    """A gateway answers for its own pool only."""
    call: dict[str, Any] = {"post": {"json": ASKED}}.get(ask, {})
    async with client.request(ask, "/v1/pools/other/shares", **call) as response:
        error = (await response.json())["error"]

    assert (response.status, error["code"]) == (404, "pool_not_found")
