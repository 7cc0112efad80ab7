"""`tandem up` with all real services and an engine that counts."""

import asyncio
import json
import os
import signal
import socket
import sys
import time
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

from waiting import wait_until

from tandem.rundir import is_alive

MODEL = str(Path(__file__).parents[2] / "models" / "stories260K")
READY_SECONDS = 90.0
STOP_SECONDS = 5.0

TANDEM = (sys.executable, "-m", "tandem")
UP = (*TANDEM, "up", "--model", MODEL, "--engine", "counting", "--port", "0")


@asynccontextmanager
async def mesh(
    run_dir: Path, *options: str
) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A running mesh and its URL; stopped at the end if it still runs."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TANDEM_")}
    process = await asyncio.create_subprocess_exec(
        *(*UP, "--run-dir", str(run_dir), *options),
        env=environment,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout
    try:
        async with asyncio.timeout(READY_SECONDS):
            line = (await process.stdout.readline()).decode()
        assert line.startswith("ready http://127.0.0.1:")
        yield process, line.split()[1]
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def state(run_dir: Path) -> Any:
    """What `tandem status --json` prints."""
    process = await asyncio.create_subprocess_exec(
        *(*TANDEM, "status", "--run-dir", str(run_dir), "--json"),
        stdout=asyncio.subprocess.PIPE,
    )
    printed, _ = await process.communicate()
    assert process.returncode == 0
    return json.loads(printed)


async def pids(run_dir: Path, service: str) -> list[int]:
    found = (await state(run_dir))["processes"]
    return [process["pid"] for process in found if process["service"] == service]


def count_on(url: str) -> list[int]:
    """Three tokens after 41; none while the gateway says that it is starting."""
    body = {"prompt": [41], "max_tokens": 3, "return_token_ids": True, "model": "one"}
    request = urllib.request.Request(
        f"{url}/v1/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            ids: list[int] = json.load(reply)["choices"][0]["token_ids"]
            return ids
    except HTTPError as error:
        with error:
            if error.code != 503:
                raise
        return []


async def test_a_mesh_from_start_to_stop(tmp_path: Path) -> None:
    """
    It says ready when it answers, shows its parts, and leaves only logs behind.
    """
    options = ("--served-model-name", "one", "--decode", "2", "--kv-blocks", "99")
    async with mesh(tmp_path, *options) as (process, url):
        answer = await asyncio.to_thread(count_on, url)
        seen = await wait_for_processes(tmp_path, 5)
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        code = await process.wait()
        stopped_after = time.monotonic() - started

    assert answer == [42, 43, 44]
    assert seen["pools"][0]["blocks"]["total"] == 99
    assert (code, stopped_after < STOP_SECONDS) == (0, True)
    assert os.listdir(tmp_path) == ["logs"]
    assert not any(is_alive(process["pid"]) for process in seen["processes"])


async def wait_for_processes(run_dir: Path, count: int) -> Any:
    async def complete() -> Any:
        seen = await state(run_dir)
        return seen if len(seen["processes"]) == count else None

    return await wait_until(complete, READY_SECONDS)


async def test_a_killed_gateway_comes_back_on_its_port(tmp_path: Path) -> None:
    """
    While the gateway is started again, connections are never refused.
    """
    async with mesh(tmp_path, "--served-model-name", "one") as (_, url):
        (gateway,) = await pids(tmp_path, "gateway")
        os.kill(gateway, signal.SIGKILL)
        await wait_until(lambda: not is_alive(gateway))

        answer = await wait_until(
            lambda: asyncio.to_thread(count_on, url), READY_SECONDS
        )

    assert answer == [42, 43, 44]


async def test_a_killed_supervisor_leaves_no_process(tmp_path: Path) -> None:
    """
    After kill -9 nothing runs on, and the same directory can be used again.
    """
    async with mesh(tmp_path) as (process, url):
        seen = await state(tmp_path)
        process.kill()
        await wait_until(
            lambda: not any(is_alive(each["pid"]) for each in seen["processes"])
        )

    port = int(url.rpartition(":")[2])
    with socket.create_server(("127.0.0.1", port)):
        pass
    async with mesh(tmp_path):
        pass
    assert os.listdir(tmp_path) == ["logs"]
