"""`tandem shares`: how the phases of a pool share its machine, and a change of that."""

import asyncio
import json
from typing import Any

from redis.asyncio import Redis
from rich.console import Console

from mesh.connect import LOST, connect
from mesh.errors import ConfigurationError
from mesh.state import kept, publish, withdraw
from mesh.timing import every
from protocol import keys
from protocol.messages import (
    ForgetShares,
    PoolStatus,
    Shares,
    WorkerStatus,
    decode_status,
)
from protocol.wire import encode
from tandem.status import read, shares_table

HEARD_SECONDS = 5.0  # for the store to say that it has them
POLL_SECONDS = 0.05
AUTO = "auto"


def run(redis_url: str, pool: str, new: list[str], *, as_json: bool) -> None:
    """Set what is asked for, if anything, and print what is in force."""
    if new:
        asyncio.run(_change(redis_url, pool, _asked(new)))
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
        "by": {each.pool: each.shares_by for each in pools},
        "workers": [each.model_dump(include=shown) for each in everyone if each.phases],
    }


def _asked(new: list[str]) -> Shares | None:
    """None: nobody's any more."""
    if new == [AUTO]:
        return None
    try:
        prefill, decode = map(int, new)
        return Shares(prefill=prefill, decode=decode)
    except ValueError:
        raise ConfigurationError(
            "say both shares, 1 to 100, like: tandem shares 60 40; or: tandem shares auto"
        ) from None


async def _change(redis_url: str, pool: str, shares: Shares | None) -> None:
    try:
        async with connect(redis_url) as redis:
            if await _status_of(redis, pool) is None:
                raise ConfigurationError(f"no pool {pool} lives at this Redis")
            await _order(redis, pool, shares)
            async with asyncio.timeout(HEARD_SECONDS):
                async for _ in every(POLL_SECONDS, asyncio.Event()):
                    status = await _status_of(redis, pool)
                    if status and _are_those(status, shares):
                        return
    except TimeoutError:
        raise ConfigurationError(
            "the store is silent: it may hear of it later"
        ) from None
    except (*LOST, ValueError) as error:
        raise ConfigurationError(
            f"no mesh: its Redis does not answer ({type(error).__name__})"
        ) from None


async def _order(redis: Redis, pool: str, shares: Shares | None) -> None:
    key, stream = keys.shares(pool), keys.control(pool)
    order = encode(shares or ForgetShares())
    tell = publish if shares else withdraw
    await tell(redis, key, stream, order, keys.MAX_CONTROL_ENTRIES)


def _are_those(status: PoolStatus, shares: Shares | None) -> bool:
    if shares is None:
        return status.shares_by != "order"
    return status.shares_by == "order" and status.shares == shares


async def _status_of(redis: Redis, pool: str) -> PoolStatus | None:
    """As the store tells it; None if there is no store."""
    body = await kept(redis, keys.pool(pool))
    status = decode_status(body) if body else None
    return status if isinstance(status, PoolStatus) else None
