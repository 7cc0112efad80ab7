"""Jobs and cancels leave in order, whatever becomes of who sends them."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from jobs import prefill_job
from redis.asyncio import Redis
from waiting import wait_until

from gateway.errors import Unavailable
from gateway.outbox import MAX_WAITING, Outbox
from protocol import keys
from protocol.messages import Cancel, RequestId, decode_control, decode_job

CONTROL = keys.control("default")
PREFILL = keys.prefill("default")


@pytest.fixture
async def outbox(redis: Redis) -> AsyncIterator[Outbox]:
    """An outbox that delivers."""
    box = Outbox(redis)
    delivering = asyncio.create_task(box.deliver(), name="outbox")
    yield box
    box.close()
    await delivering


async def test_a_job_carries_where_its_failure_may_go(
    outbox: Outbox, redis: Redis
) -> None:
    """Even a job that no worker can read says whose it is and where to answer."""
    job = prefill_job("r1")

    await outbox.submit(job, "default")

    [(_, fields)] = await redis.xrange(PREFILL)
    assert fields[b"request_id"] == b"r1"
    assert fields[b"reply_to"] == job.reply_to.encode()
    assert decode_job(fields[b"body"]) == job


async def test_closing_sends_what_waits(redis: Redis) -> None:
    """A cancel made at the last moment still goes out."""
    box = Outbox(redis)
    box.cancel(prefill_job("r1").request_id, ["default"])
    box.close()

    await box.deliver()

    [(_, fields)] = await redis.xrange(CONTROL)
    cancel = decode_control(fields[b"body"])
    assert cancel == Cancel(request_id=prefill_job("r1").request_id)


async def test_a_job_whose_client_left_is_not_sent(redis: Redis) -> None:
    """Who goes away before the job went out costs the pool nothing."""
    box = Outbox(redis)
    submitting = asyncio.create_task(
        box.submit(prefill_job("r1"), "default"), name="submitting"
    )
    await asyncio.wait({submitting}, timeout=0)  # the job waits now
    submitting.cancel()
    await asyncio.wait({submitting})
    box.close()

    await box.deliver()

    assert await redis.xlen(PREFILL) == 0


async def test_while_redis_refuses_jobs_fail_and_cancels_wait(
    outbox: Outbox, redis: Redis
) -> None:
    """A cancel is not lost with the queue; a job is, and its client hears so."""
    await redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(Unavailable):
            await outbox.submit(prefill_job("r1"), "default")
        outbox.cancel(prefill_job("r2").request_id, ["default"])
    finally:
        await redis.config_set("maxmemory", 0)

    await wait_until(lambda: redis.xlen(CONTROL))


async def test_cancels_beyond_the_bound_are_not_kept(redis: Redis) -> None:
    """While Redis is away the letters that wait are so many, and no more."""
    box = Outbox(redis)
    for number in range(MAX_WAITING + 10):
        box.cancel(RequestId(f"r{number}"), ["default"])

    with pytest.raises(Unavailable, match="Too many jobs"):
        await box.submit(prefill_job("late"), "default")
    box.close()
    await box.deliver()

    assert await redis.xlen(CONTROL) == MAX_WAITING
