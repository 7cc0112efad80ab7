"""`tandem shares`, with a store that is an entry in Redis."""

import asyncio
import json

import pytest
from redis.asyncio import Redis
from waiting import wait_until

from mesh.errors import ConfigurationError
from mesh.state import publish
from mesh.streams import Tail
from protocol import keys
from protocol.messages import (
    ForgetShares,
    PoolStatus,
    Shares,
    WorkerStatus,
    decode_control,
    decode_shares,
)
from protocol.wire import encode
from tandem.shares import run

POOL = PoolStatus(
    pool="default", model="m", block_size=4, max_model_len=8, vocab_size=10,
    num_waiting=0, num_parked=0, total=2, free=1, cached=0, referenced=1, quarantined=0,
)  # fmt: skip
WORKER = WorkerStatus(
    service="decode", worker_id="decode-1", pool="default", pid=1, host="elsewhere",
    phases=("decode",), percent=60, computes_on="1.2 of 2 cores",
)  # fmt: skip
ASKED = Shares(prefill=60, decode=40)


async def live(redis: Redis, pool: PoolStatus = POOL) -> None:
    """A pool with one worker, which was told to take 60 %."""
    await redis.set(keys.worker("decode-1"), encode(WORKER))
    await redis.set(keys.pool(pool.pool), encode(pool))


async def run_in_thread(redis_url: str, *new: str, as_json: bool = True) -> None:
    """The command runs a loop of its own."""
    await asyncio.to_thread(run, redis_url, "default", list(new), as_json=as_json)


async def test_shares_are_shown_with_what_each_worker_computes_on(
    redis: Redis, redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """
    What the pool's store says, and what each worker had in its last step.
    """
    await live(redis)

    await run_in_thread(redis_url)
    shown = json.loads(capsys.readouterr().out)
    await run_in_thread(redis_url, as_json=False)

    assert shown["shares"] == {"default": {"prefill": 100, "decode": 100}}
    assert shown["workers"][0]["computes_on"] == "1.2 of 2 cores"
    assert "60 %: 1.2 of 2 cores" in capsys.readouterr().out


async def test_a_change_is_published_and_waited_for(
    redis: Redis, redis_url: str
) -> None:
    """
    It is told on the control stream, kept for a later store, and done when the store
    says so.
    """
    await live(redis)
    control = Tail(redis, keys.control("default"), after=b"0")

    changing = asyncio.create_task(run_in_thread(redis_url, "60", "40"))
    (entry,) = await wait_until(lambda: control.read(1))
    told = decode_control(entry.fields[b"body"])
    kept = decode_shares(await redis.get(keys.shares("default")))
    assert not changing.done()
    await live(redis, POOL.changed(shares=ASKED, shares_by="order"))
    await changing

    assert told == kept == ASKED


async def test_auto_takes_back_what_was_set(
    redis: Redis, redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """
    Nothing is kept, and it is done when the store says that no order holds.
    """
    await live(redis, POOL.changed(shares_by="order"))
    stream = keys.control("default")
    await publish(redis, keys.shares("default"), stream, encode(ASKED), max_len=9)
    control = Tail(redis, stream)

    changing = asyncio.create_task(run_in_thread(redis_url, "auto", as_json=False))
    (entry,) = await wait_until(lambda: control.read(1))
    assert not changing.done()
    await live(redis, POOL.changed(shares_by="queue"))
    await changing

    assert decode_control(entry.fields[b"body"]) == ForgetShares()
    assert await redis.get(keys.shares("default")) is None
    assert "by the queue" in capsys.readouterr().out


@pytest.mark.parametrize("new", [["60"], ["60", "many"], ["0", "40"], ["auto", "40"]])
async def test_shares_that_are_none_are_refused(
    redis: Redis, redis_url: str, new: list[str]
) -> None:
    """
    With what to say instead, and nobody is told.
    """
    await live(redis)

    with pytest.raises(ConfigurationError, match="tandem shares 60 40"):
        await run_in_thread(redis_url, *new)

    assert await redis.get(keys.shares("default")) is None


async def test_a_pool_that_is_not_there_has_no_shares(
    redis: Redis, redis_url: str
) -> None:
    """
    Who names a pool that nobody serves hears so, and nothing is left behind.
    """
    with pytest.raises(ConfigurationError, match="no pool default lives"):
        await run_in_thread(redis_url, "60", "40")

    assert await redis.keys() == []
