"""A mesh of our own for as long as it is measured: `tandem up` as a process."""

import asyncio
import os
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from bench.experiments.systems import System
from mesh.errors import ConfigurationError
from mesh.settings import PREFIX

READY_SECONDS = 300.0  # the first start of a new version compiles kernels
STOP_SECONDS = 30.0
POOL = "default"
MAX_LOOKS, LOOK_SECONDS = 40, 0.25


@asynccontextmanager
async def serving(system: System, options: Sequence[str]) -> AsyncIterator[str]:
    """The URL of the system, which serves while inside.

    `options` are of `tandem up`, for each mesh alike. ConfigurationError if it does not
    start.
    """
    if not system.is_ours:
        yield system.url
        return
    with tempfile.TemporaryDirectory(prefix="tandem-experiment-") as folder:
        command = ["-m", "tandem", "up", "--port", "0", "--run-dir", folder]
        said = Path(folder) / "said"
        with said.open("w") as stderr:
            mesh = await asyncio.create_subprocess_exec(
                sys.executable,
                *(*command, *options, *system.options),
                stdout=PIPE,
                stderr=stderr,
                env={k: v for k, v in os.environ.items() if not k.startswith(PREFIX)},
            )
        try:
            url = await _url(mesh, said)
            if system.shares:
                await _share(url, *system.shares)
            yield url
        finally:
            await _stop(mesh)


async def _url(mesh: Process, said: Path) -> str:
    assert mesh.stdout
    try:
        async with asyncio.timeout(READY_SECONDS):
            line = (await mesh.stdout.readline()).decode()
    except TimeoutError:
        line = ""
    if not line.startswith("ready "):
        raise ConfigurationError(f"a mesh did not start: {_last_line(said)}")
    return line.split()[1]


def _last_line(said: Path) -> str:
    return said.read_text().strip().rpartition("\n")[2] or "it took too long"


async def _share(url: str, prefill: int, decode: int) -> None:
    """Set the shares; ConfigurationError if they do not come into force."""
    wanted, path = {"prefill": prefill, "decode": decode}, f"/v1/pools/{POOL}/shares"
    async with aiohttp.ClientSession(url, raise_for_status=True) as http:
        async with http.post(path, json=wanted):
            pass
        for _ in range(MAX_LOOKS):
            async with http.get(path) as response:
                if (await response.json())["shares"] == wanted:
                    return
            await asyncio.sleep(LOOK_SECONDS)
    raise ConfigurationError(f"the mesh does not take the shares {prefill}/{decode}")


async def _stop(mesh: Process) -> None:
    """Ctrl-C in a terminal has reached it already."""
    if mesh.returncode is None:
        mesh.terminate()
    try:
        async with asyncio.timeout(STOP_SECONDS):
            await mesh.wait()
    except TimeoutError:
        mesh.kill()
        await mesh.wait()
