"""`tandem shares`: how the phases of a pool share its machine, and a change of that."""

import asyncio
import json
from typing import Any

from redis.asyncio import Redis
from rich.console import Console

from mesh.connect import LOST, connect
from mesh.errors import ConfigurationError
from mesh.state import kept, publish
from mesh.timing import every
from protocol import keys
from protocol.messages import PoolStatus, Shares, WorkerStatus, decode_status
from protocol.wire import encode
from tandem.status import read, shares_table

HEARD_SECONDS = 5.0  # for the store to say that it has them
POLL_SECONDS = 0.05


def run(redis_url: str, pool: str, percents: list[int], *, as_json: bool) -> None:
    """Set what is asked for, if anything, and print what is in force."""
    if percents:
        asyncio.run(_change(redis_url, pool, _shares(percents)))
    everyone, pools = asyncio.run(read(redis_url))
    everyone = [each for each in everyone if each.pool == pool]
    pools = [each for each in pools if each.pool == pool]
    if as_json:
        print(json.dumps(as_dict(everyone, pools), indent=2))
    else:
        Console().print(shares_table(everyone, pools))


def as_dict(everyone: list[WorkerStatus], pools: list[PoolStatus]) -> dict[str, Any]:
    """What `--json` prints."""
    shown = {"worker_id", "phases", "running", "percent", "computes_on"}
    return {
        "shares": {
            each.pool: each.shares.model_dump(exclude={"type"}) for each in pools
        },
        "workers": [each.model_dump(include=shown) for each in everyone if each.phases],
    }


def _shares(percents: list[int]) -> Shares:
    if len(percents) != 2:
        raise ConfigurationError("say both shares, like: tandem shares 60 40")
    prefill, decode = percents
    return Shares(prefill=prefill, decode=decode)


async def _change(redis_url: str, pool: str, shares: Shares) -> None:
    try:
        async with connect(redis_url) as redis:
            if await _shares_of(redis, pool) is None:
                raise ConfigurationError(f"no pool {pool} lives at this Redis")
            stream, body = keys.control(pool), encode(shares)
            await publish(
                redis, keys.shares(pool), stream, body, keys.MAX_CONTROL_ENTRIES
            )
            async with asyncio.timeout(HEARD_SECONDS):
                async for _ in every(POLL_SECONDS, asyncio.Event()):
                    if await _shares_of(redis, pool) == shares:
                        return
    except TimeoutError:
        raise ConfigurationError(
            "the store is silent: it may hear of it later"
        ) from None
    except (*LOST, ValueError) as error:
        raise ConfigurationError(
            f"no mesh: its Redis does not answer ({type(error).__name__})"
        ) from None


async def _shares_of(redis: Redis, pool: str) -> Shares | None:
    """As the store tells them; None if there is no store."""
    body = await kept(redis, keys.pool(pool))
    status = decode_status(body) if body else None
    return status.shares if isinstance(status, PoolStatus) else None
