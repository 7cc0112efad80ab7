"""`tandem status` on a registry with known content."""

import asyncio
import json
import os
import socket
import subprocess
import sys

import pytest
from redis.asyncio import Redis

from protocol import keys
from protocol.messages import InForce, PoolCounts, PoolStatus, WorkerStatus
from protocol.wire import encode
from tandem.status import show

POOL = PoolStatus(
    pool="default",
    model="/models/one",
    block_size=16,
    max_model_len=512,
    vocab_size=100,
    num_waiting=1,
    num_parked=2,
    total=10,
    free=4,
    cached=3,
    referenced=2,
    quarantined=1,
    counts=PoolCounts(
        queried_tokens=80,
        cached_tokens=20,
        preemptions=5,
        parks=6,
        adoptions=7,
        recoveries=8,
    ),
)


def worker(worker_id: str, pid: int, host: str) -> WorkerStatus:
    return WorkerStatus(
        service="decode",
        worker_id=worker_id,
        pool="default",
        pid=pid,
        host=host,
        running=3,
        ready=True,
        in_force=InForce(device="cpu", dtype="float32", threads=2),
    )


async def register(redis: Redis, *workers: WorkerStatus) -> None:
    for status in workers:
        await redis.set(keys.worker(status.worker_id), encode(status))
    await redis.set(keys.pool(POOL.pool), encode(POOL))


def gone() -> int:
    """The pid of a process that has ended."""
    with subprocess.Popen([sys.executable, "-S", "-c", ""]) as process:
        return process.pid


async def run_show(redis_url: str, *, as_json: bool) -> None:
    """In a thread: the command runs a loop of its own."""
    await asyncio.to_thread(show, redis_url, as_json=as_json)


async def test_json_lists_processes_and_blocks(
    redis: Redis, redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """
    Programs read every process, and the state of each pool's blocks.
    """
    await register(redis, worker("decode-1", os.getpid(), socket.gethostname()))

    await run_show(redis_url, as_json=True)

    state = json.loads(capsys.readouterr().out)
    (process,) = state["processes"]
    assert process["service"] == "decode"
    assert process["pid"] == os.getpid()
    assert (process["running"], process["waiting"]) == (3, 0)
    assert process["in_force"]["threads"] == 2
    (pool,) = state["pools"]
    assert (pool["pool"], pool["waiting"], pool["parked"]) == ("default", 1, 2)
    assert pool["sharing"] == "memfd"
    assert pool["blocks"] == {
        "total": 10,
        "free": 4,
        "cached": 3,
        "referenced": 2,
        "quarantined": 1,
    }
    assert pool["prefix_cache_hit_rate"] == 0.25
    assert pool["counts"]["recoveries"] == 8


async def test_a_dead_process_of_this_machine_is_left_out(
    redis: Redis, redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """
    A heartbeat outlives its process for a moment; elsewhere only it can be trusted.
    """
    pid = gone()
    here, elsewhere = socket.gethostname(), "another-host"
    await register(redis, worker("dead", pid, here), worker("far", pid, elsewhere))

    await run_show(redis_url, as_json=True)

    state = json.loads(capsys.readouterr().out)
    assert [process["worker_id"] for process in state["processes"]] == ["far"]


async def test_a_person_reads_tables(
    redis: Redis, redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """
    Without --json the same facts are tables.
    """
    await register(redis, worker("decode-1", os.getpid(), socket.gethostname()))

    await run_show(redis_url, as_json=False)

    printed = capsys.readouterr().out
    assert "decode-1" in printed
    assert "cpu float32, 2 threads" in printed
    assert "memory shared by memfd" in printed
    assert "referenced" in printed
    assert "25.0%" in printed
    assert "recoveries" in printed
