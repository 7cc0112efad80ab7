"""`tandem experiment paradigms` that is told to end: nothing of its mesh stays."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import aiohttp
import psutil
import pytest
from running import STORIES
from waiting import wait_until

from mesh.errors import ConfigurationError
from tandem.rundir import address_of

OPTIONS = ["--systems", "semi-100", "--rates", "5", "--vocab-size", "500"]
OPTIONS += ["--model", str(STORIES), "--", "--engine", "counting"]


@contextmanager
def experiment(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """One that would go on for long, with this folder for its temporary files.

    Ctrl-C is ignored as it starts: so shells begin what a script has in the background.
    """
    command = [sys.executable, "-m", "tandem", "experiment", "paradigms"]
    command += ["--out", str(folder / "found"), *OPTIONS]
    env = os.environ | {"TMPDIR": str(folder)}
    ignore = partial(signal.signal, signal.SIGINT, signal.SIG_IGN)
    with subprocess.Popen(
        command, env=env, stderr=subprocess.DEVNULL, preexec_fn=ignore
    ) as process:
        try:
            yield process
        finally:
            for left in started_with(folder):
                left.kill()


def started_with(folder: Path) -> list[psutil.Process]:
    """Everything that has this folder for its temporary files."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("TMPDIR") == str(folder):
                found.append(process)
        except psutil.Error:  # it is somebody else's, or ended just now
            continue
    return found


def mesh_url(folder: Path) -> str:
    """Empty until there is a mesh."""
    for run_dir in folder.glob("tandem-experiment-*"):
        with suppress(ConfigurationError):
            return address_of(run_dir).gateway_url
    return ""


async def is_asked(folder: Path) -> bool:
    """Whether the mesh was asked something: so it was ready, and the experiment knew."""
    with suppress(aiohttp.ClientError, ValueError):
        async with (
            aiohttp.ClientSession() as http,
            http.get(f"{mesh_url(folder)}/metrics") as answer,
        ):
            return "tandem_request_total{" in await answer.text()
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_its_mesh_ends_with_it(number: signal.Signals, tmp_path: Path) -> None:
    """
    By Ctrl-C or by SIGTERM, of which a mesh in another process knows nothing.
    """
    with experiment(tmp_path) as process:
        await wait_until(lambda: is_asked(tmp_path), seconds=60)

        process.send_signal(number)
        process.wait(timeout=30)

        await wait_until(lambda: not started_with(tmp_path))

    assert process.returncode != 0
