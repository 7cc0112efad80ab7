"""The services started by hand: one store, and one worker that does both phases."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from jobs import prefill_job
from redis.asyncio import Redis
from waiting import wait_until

from mesh.registry import living
from mesh.streams import Mailbox, send
from protocol import keys
from protocol.messages import TokenEvents, WorkerStatus, decode_reply, decode_status
from protocol.wire import encode


@pytest.fixture
def processes(redis_url: str, tmp_path: Path) -> Iterator[dict[str, int]]:
    """A store and a fused worker with an engine that counts; their pids by name."""
    shared = {
        "TANDEM_REDIS_URL": redis_url,
        "TANDEM_STORE_SOCKET": str(tmp_path / "s"),
    }
    fused = {"TANDEM_PHASES": "both", "TANDEM_ENGINE": "counting"}
    clean = {k: v for k, v in os.environ.items() if not k.startswith("TANDEM_")}
    with ExitStack() as stack:
        started = {}
        for service, settings in (("kvstore", {}), ("decode", fused)):
            command = [sys.executable, "-m", service]
            process = stack.enter_context(
                subprocess.Popen(
                    command, env=clean | shared | settings, stderr=subprocess.DEVNULL
                )
            )
            stack.callback(process.terminate)
            started[service] = process.pid
        yield started


async def fused_worker(redis: Redis) -> WorkerStatus | None:
    for body in await living(redis, keys.ALL_WORKERS):
        status = decode_status(body)
        if isinstance(status, WorkerStatus) and status.phases and status.ready:
            return status
    return None


async def test_one_worker_does_both_phases(
    redis: Redis, processes: dict[str, int]
) -> None:
    """
    A fused worker, as others build them, is a setting: it needs no handoff.
    """
    mailbox = Mailbox(redis, "g1", keys.replies, lease_seconds=30)
    await mailbox.open()
    worker = await wait_until(lambda: fused_worker(redis))
    job = prefill_job("r1", num_tokens=3, max_tokens=5, deadline=time.time() + 30)

    await send(redis, keys.prefill("default"), {"body": encode(job)})
    output: list[int] = []
    while len(output) < 5:
        for entry in await mailbox.read(10):
            if b"body" in entry.fields:
                reply = decode_reply(entry.fields[b"body"])
                assert isinstance(reply, TokenEvents)
                for event in reply.events:
                    output.extend(event.token_ids)

    assert worker.phases == ("prefill", "decode")
    assert worker.pid == processes["decode"]
    assert output == [4, 5, 6, 7, 8]
    assert not await redis.exists(keys.decode("default")) or not await redis.xlen(
        keys.decode("default")
    )
