"""Gateways measure, one of them decides, the pool is told: on a real Redis."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import aiohttp
from fake_pool import POOL, FakePool, decision, pool_status
from redis.asyncio import Redis
from waiting import wait_until

from gateway.evidence import joined
from gateway.latencies import Meter
from gateway.pools import Pools
from gateway.splits import FIRST
from gateway.steering import Collected, Steered, Steering
from gateway.windows import Goals
from mesh.leader import Leadership
from mesh.streams import Entry, newest, send
from protocol import keys
from protocol.messages import (
    Decision,
    Latencies,
    Shares,
    decode_decision,
    decode_latencies,
)
from protocol.wire import encode

Serve = Callable[..., Awaitable[aiohttp.ClientSession]]

WINDOW_SECONDS = 0.05
SLOW = Latencies(ttfts=(0.9,) * 9, tpots=(0.01,) * 9, num_prompt_tokens=100)


def test_a_window_is_of_all_gateways() -> None:
    """
    Samples, prompts, and the streams that began and ended; and of windows that are looked
    at together as well.
    """
    collected = Collected.nothing()
    for report in (SLOW, Latencies(ttfts=(0.1,), num_begun=3), Latencies(num_ended=2)):
        collected.add(Entry(b"1-0", {b"body": encode(report)}))

    one = collected.window(FIRST, 2.0)
    both = joined([one, one])

    assert (sorted(one.ttfts), one.tpots) == ([0.1, *SLOW.ttfts], [*SLOW.tpots])
    assert (one.shares, one.load) == (FIRST, 50.0)
    assert (one.num_begun, one.num_ended) == (3, 2)
    assert (both.num_begun, both.num_ended, both.load) == (6, 4, 50.0)


@asynccontextmanager
async def steering(redis: Redis, name: str, lease: float = 1.0) -> AsyncIterator[None]:
    """A gateway's part in it, for as long as the block lasts."""
    pools = Pools([POOL], 2.0, lambda view, name: None)
    await pools.look(redis)
    leadership = Leadership(redis, keys.steering(POOL), name, lease)
    goals, stopping = Goals(0.5, 0.05), asyncio.Event()
    pool = Steered(pools.views[0], Meter())
    one = Steering(redis, pool, leadership, goals, WINDOW_SECONDS)
    task = asyncio.create_task(one.run(stopping), name=name)
    try:
        yield
    finally:
        stopping.set()
        await task


async def decisions(redis: Redis) -> list[Decision]:
    """The newest first."""
    entries = await newest(redis, keys.decisions(POOL), 100)
    return [decode_decision(entry.fields[b"body"]) for entry in entries]


async def measured(redis: Redis, report: Latencies) -> None:
    """By a gateway, again and again."""
    while True:
        await send(redis, keys.latencies(POOL), {"body": encode(report)})
        await asyncio.sleep(WINDOW_SECONDS / 2)


async def test_the_shares_follow_what_gateways_measure(
    redis: Redis, pool: FakePool
) -> None:
    """
    While TTFT is beyond its SLO prefill gets more; each decision says what was seen and
    what is expected.
    """
    async with steering(redis, "g1"):
        slow = asyncio.create_task(measured(redis, SLOW), name="measured")
        await wait_until(lambda: pool.shares)
        slow.cancel()

    (decided,) = [d for d in await decisions(redis) if d.reason == "ttft fails"][-1:]
    assert decided.shares == pool.shares[0] == Shares(prefill=80, decode=20)
    assert (decided.leader, decided.before) == ("g1", Shares(prefill=100, decode=100))
    assert (decided.seen_ttft_seconds, decided.seen_tpot_seconds) == (0.9, 0.01)
    assert (decided.expected_ttft_seconds or 9.0) < 0.9
    assert decided.load > 0


async def test_it_begins_with_a_part_for_each(redis: Redis, pool: FakePool) -> None:
    """
    Shares that nobody set follow the queue; a leader sets some at its first window, so
    that what it sees is of these.
    """
    status = pool_status(shares=Shares(prefill=50, decode=50), shares_by="queue")
    await redis.set(keys.pool(POOL), encode(status))

    async with steering(redis, "g1"):
        await wait_until(lambda: pool.shares)

    begun = (await decisions(redis))[-1]
    assert pool.shares[0] == begun.shares == FIRST
    assert (begun.before, begun.reason) == (status.shares, "begins")


async def test_a_person_s_order_stands(redis: Redis, pool: FakePool) -> None:
    """
    Whoever leads decides nothing then, however slow all is, and says why.
    """
    status = pool_status(shares=Shares(prefill=50, decode=50), shares_by="order")
    await redis.set(keys.pool(POOL), encode(status))

    async with steering(redis, "g1"):
        slow = asyncio.create_task(measured(redis, SLOW), name="measured")
        await wait_until(lambda: has(redis, 6))
        slow.cancel()

    decided = await decisions(redis)
    assert {decision.reason for decision in decided} == {"a person's order"}
    assert {decision.shares for decision in decided} == {status.shares}
    assert pool.shares == []


async def test_one_gateway_leads_and_another_follows_it(
    redis: Redis, pool: FakePool
) -> None:
    """
    While a leader lives it alone decides; when it stops the other one goes on.
    """
    async with AsyncExitStack() as heirs:
        async with steering(redis, "g1"):
            await wait_until(lambda: led_by(redis, "g1"))
            await heirs.enter_async_context(steering(redis, "g2"))
            await wait_until(lambda: has(redis, 6))
            leaders = {decision.leader for decision in await decisions(redis)}
        await wait_until(lambda: led_by(redis, "g2"))

    assert leaders == {"g1"}


async def has(redis: Redis, count: int) -> bool:
    return len(await decisions(redis)) >= count


async def has_reports(redis: Redis, count: int) -> bool:
    return len(await newest(redis, keys.latencies(POOL), count)) == count


async def led_by(redis: Redis, leader: str) -> bool:
    return any(decision.leader == leader for decision in await decisions(redis))


async def test_without_a_pool_nothing_is_decided(redis: Redis) -> None:
    """
    Whoever leads waits for a pool to steer.
    """
    async with steering(redis, "g1"):
        await wait_until(lambda: redis.get(keys.steering(POOL)))
        await wait_until(lambda: has_reports(redis, 6))

    assert await decisions(redis) == []
    assert await redis.get(keys.steering(POOL)) is None


async def test_a_gateway_with_an_slo_measures_what_its_clients_see(
    serve: Serve, redis: Redis, pool: FakePool
) -> None:
    """
    TTFT of each answer, TPOT of those with several tokens, and what was asked of prefill.
    """
    client = await serve(slo_ttft_seconds=5.0, control_window_seconds=WINDOW_SECONDS)

    for max_tokens in (1, 5):
        call = {"prompt": [5, 6, 7], "max_tokens": max_tokens}
        async with client.post("/v1/completions", json=call) as answer:
            assert answer.status == 200

    reports = await wait_until(lambda: reported(redis, 2))
    assert sum(report.num_prompt_tokens for report in reports) == 6
    assert all(0 < ttft < 5 for report in reports for ttft in report.ttfts)
    assert sum(len(report.tpots) for report in reports) <= 1


async def reported(redis: Redis, num_ttfts: int) -> list[Latencies]:
    """Once so many first tokens are in them."""
    entries = await newest(redis, keys.latencies(POOL), 100)
    reports = [decode_latencies(entry.fields[b"body"]) for entry in entries]
    counted = sum(len(report.ttfts) for report in reports)
    return reports if counted == num_ttfts else []


async def test_any_gateway_shows_the_decisions(
    client: aiohttp.ClientSession, redis: Redis, pool: FakePool
) -> None:
    """
    With the reason, what was seen and what is expected, the newest first.
    """
    for at in (1.0, 2.0):
        body = encode(decision(at=at))
        await send(redis, keys.decisions(POOL), {"body": body})

    async with client.get(f"/v1/pools/{POOL}/decisions") as response:
        shown = (await response.json())["data"]
    async with client.get(f"/v1/pools/{POOL}/decisions?limit=1") as response:
        (newest_one,) = (await response.json())["data"]
    async with client.get(f"/v1/pools/{POOL}/decisions?limit=0") as response:
        param = (await response.json())["error"]["param"]

    assert [each["at"] for each in shown] == [2.0, 1.0]
    assert (newest_one, param) == (shown[0], "limit")
    assert (shown[0]["before"], shown[0]["shares"]) == ("50/50", "60/40")
    assert (shown[0]["reason"], shown[0]["seen_ttft_seconds"]) == ("ttft fails", 0.9)
