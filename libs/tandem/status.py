"""`tandem status`: who is alive and what the pools hold, as the heartbeats tell it."""

import asyncio
import json
import socket
from typing import Any

from redis.asyncio import Redis
from rich.console import Console
from rich.table import Table

from mesh.connect import LOST, connect
from mesh.errors import ConfigurationError
from mesh.registry import living
from protocol import keys
from protocol.messages import (
    BLOCK_STATES,
    PoolStatus,
    WorkerStatus,
    decode_status,
)
from tandem.rundir import is_alive

ANSWER_SECONDS = 2.0
EVENTS = ("preemptions", "parks", "adoptions", "recoveries")


def show(redis_url: str, *, as_json: bool) -> None:
    """Print the state of every process and pool that this Redis knows."""
    everyone, pools = asyncio.run(read(redis_url))
    if as_json:
        print(json.dumps(as_dict(everyone, pools), indent=2))
        return
    console = Console()
    console.print(_process_table(everyone))
    console.print(_in_force_table(everyone, pools))
    console.print(_pool_table(pools))
    console.print(_counts_table(pools))
    console.print(shares_table(everyone, pools))


async def processes(redis: Redis) -> list[WorkerStatus]:
    """Every process that lives; of a dead one on this machine its heartbeat may linger."""
    statuses = await _statuses(redis, keys.ALL_WORKERS)
    here = socket.gethostname()
    return [
        status
        for status in statuses
        if isinstance(status, WorkerStatus)
        and (status.host != here or is_alive(status.pid))
    ]


async def read(redis_url: str) -> tuple[list[WorkerStatus], list[PoolStatus]]:
    """All that lives; ConfigurationError when this Redis does not answer."""
    try:
        async with asyncio.timeout(ANSWER_SECONDS), connect(redis_url) as redis:
            everyone = await processes(redis)
            statuses = await _statuses(redis, keys.ALL_POOLS)
    except (*LOST, ValueError) as error:
        raise ConfigurationError(
            f"no mesh: its Redis does not answer ({type(error).__name__})"
        ) from None
    everyone.sort(key=lambda process: (process.pool, process.service, process.pid))
    pools = [status for status in statuses if isinstance(status, PoolStatus)]
    return everyone, sorted(pools, key=lambda pool: pool.pool)


async def _statuses(redis: Redis, pattern: str) -> list[WorkerStatus | PoolStatus]:
    return [decode_status(body) for body in await living(redis, pattern)]


def as_dict(everyone: list[WorkerStatus], pools: list[PoolStatus]) -> dict[str, Any]:
    """What `--json` prints."""
    return {
        "processes": [process.model_dump(exclude={"type"}) for process in everyone],
        "pools": [pool.summary() for pool in pools],
    }


def _process_table(everyone: list[WorkerStatus]) -> Table:
    table = Table(title="processes", title_justify="left")
    for column in ("pool", "service", "worker", "host", "pid"):
        table.add_column(column)
    for column in ("running", "waiting", "ready"):
        table.add_column(column, justify="right")
    for process in everyone:
        table.add_row(
            process.pool,
            process.service,
            process.worker_id,
            process.host,
            str(process.pid),
            str(process.running),
            str(process.waiting),
            "yes" if process.ready else "no",
        )
    return table


def _in_force_table(everyone: list[WorkerStatus], pools: list[PoolStatus]) -> Table:
    """What runs on what, and why on no more."""
    table = Table(title="in force", title_justify="left")
    for column in ("pool", "worker", "runs on", "why not more"):
        table.add_column(column)
    for pool in pools:
        table.add_row(pool.pool, pool.store, f"memory shared by {pool.sharing}", "")
    for process in everyone:
        if found := process.in_force:
            name, reasons = process.worker_id, "; ".join(found.reasons)
            table.add_row(process.pool, name, found.in_words(), reasons)
    return table


def _pool_table(pools: list[PoolStatus]) -> Table:
    table = Table(title="KV blocks", title_justify="left")
    table.add_column("pool")
    for column in (*BLOCK_STATES, "waiting", "parked"):
        table.add_column(column, justify="right")
    for pool in pools:
        blocks = [str(getattr(pool, state)) for state in BLOCK_STATES]
        table.add_row(pool.pool, *blocks, str(pool.num_waiting), str(pool.num_parked))
    return table


def _counts_table(pools: list[PoolStatus]) -> Table:
    table = Table(title="since the store started", title_justify="left")
    table.add_column("pool")
    for column in ("tokens", "cached", *EVENTS):
        table.add_column(column, justify="right")
    for pool in pools:
        counts = pool.counts
        events = [str(getattr(counts, event)) for event in EVENTS]
        cached = f"{counts.hit_rate:.1%}"
        table.add_row(pool.pool, str(counts.queried_tokens), cached, *events)
    return table


def shares_table(everyone: list[WorkerStatus], pools: list[PoolStatus]) -> Table:
    """What each worker may take of the machine, beside what its pool's shares are."""
    shares = {pool.pool: _in_words(pool) for pool in pools}
    table = Table(title="shares of prefill and decode", title_justify="left")
    for column in ("pool", "in force", "worker", "in its last step"):
        table.add_column(column)
    for worker in everyone:
        if worker.phases:
            in_force = shares.get(worker.pool, "")
            table.add_row(worker.pool, in_force, worker.worker_id, _taken_by(worker))
    return table


def _in_words(pool: PoolStatus) -> str:
    by = ", by the queue" if pool.shares_by == "queue" else ""
    return f"{pool.shares}{by}"


def _taken_by(worker: WorkerStatus) -> str:
    on = f": {worker.computes_on}" if worker.computes_on else ""
    return f"{worker.percent} %{on}"
