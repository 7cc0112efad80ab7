"""What comes and goes beside a mesh that works: gateways, workers, other models."""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import pytest
from running import STORIES, RunningMesh
from storm import LONG_ANSWERS, once_at, remember, streamed, undisturbed
from waiting import wait_until

from tandem.rundir import address_of

pytestmark = pytest.mark.chaos

OTHER_MODEL = Path(__file__).parents[2] / "models" / "demo"


def environment(mesh: RunningMesh, **settings: str) -> dict[str, str]:
    """Of a process that joins the mesh."""
    address = address_of(mesh.run_dir)
    mine = {"REDIS_URL": address.redis_url, "MODEL": str(STORIES), **settings}
    kept = {k: v for k, v in os.environ.items() if not k.startswith("TANDEM_")}
    return kept | {f"TANDEM_{name}": value for name, value in mine.items()}


@contextmanager
def second_gateway(mesh: RunningMesh) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        descriptor = listener.fileno()
        settings = {"LISTEN_FD": str(descriptor), "SERVED_MODEL_NAME": "test"}
        with subprocess.Popen(
            [sys.executable, "-m", "gateway"],
            env=environment(mesh, **settings),
            pass_fds=(descriptor,),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            try:
                yield f"http://127.0.0.1:{listener.getsockname()[1]}", process
            finally:
                process.kill()


async def is_ready(url: str) -> bool:
    async with aiohttp.ClientSession() as http, http.get(f"{url}/ready") as response:
        return response.status == 200


async def test_a_killed_gateway(whole_mesh: RunningMesh) -> None:
    """
    Only the connections of the killed gateway break, and its sequences are given up.
    """
    calm = await undisturbed(whole_mesh)
    with second_gateway(whole_mesh) as (url, process):
        await wait_until(lambda: is_ready(url), seconds=60)
        other = RunningMesh(url, whole_mesh.run_dir, whole_mesh.up)
        theirs = asyncio.create_task(
            streamed(other, once_at(60, process.kill)), name="theirs"
        )

        wild = await streamed(whole_mesh)

        with pytest.raises(aiohttp.ClientError):
            await theirs
    remember("a killed gateway", wild)
    assert wild == calm


def test_a_worker_with_another_model_is_refused(mesh: RunningMesh) -> None:
    """
    What is no copy of the model that the pool serves says so and ends.
    """
    store = address_of(mesh.run_dir).sockets / "kvstore.sock"
    settings = {"MODEL": str(OTHER_MODEL), "STORE_SOCKET": str(store)}

    ended = subprocess.run(
        [sys.executable, "-m", "decode"],
        env=environment(mesh, **settings),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert ended.returncode == 2
    assert "another model" in ended.stderr.splitlines()[-1]


async def test_workers_come_and_go(whole_mesh: RunningMesh) -> None:
    """
    `tandem scale` changes the number of workers in mid-sentence; no answer changes.
    """
    calm = await undisturbed(whole_mesh, LONG_ANSWERS)
    running = asyncio.create_task(streamed(whole_mesh, asked=LONG_ANSWERS), name="wild")

    for decode in (3, 1, 2):
        await asyncio.to_thread(whole_mesh.scale, decode)

    wild = await running
    remember("workers come and go", wild)
    assert wild == calm
    await wait_until(lambda: len(whole_mesh.pids("decode")) == 2, seconds=60)
