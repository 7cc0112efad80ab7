"""A whole mesh as its users run it: `tandem up`, real processes, HTTP from outside."""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from tandem.plan import STEM_SOCKET
from tandem.rundir import address_of
from tandem.scaling import Wanted, ask
from tandem.status import as_dict, read

READY_SECONDS = 120
STOP_SECONDS = 10

MODELS = Path(__file__).parent.parent / "models"
STORIES, DEMO = MODELS / "stories260K", MODELS / "demo"


class RunningMesh:
    """One mesh and what can be seen of it from outside."""

    def __init__(self, url: str, run_dir: Path, up: subprocess.Popen[str]) -> None:
        self.url = url
        self.run_dir = run_dir
        self.up = up

    def status(self) -> dict[str, Any]:
        """As `tandem status --json`, without a process that would take the cores."""
        url = address_of(self.run_dir).redis_url
        with ThreadPoolExecutor(1) as thread:  # it runs a loop of its own
            return as_dict(*thread.submit(asyncio.run, read(url)).result(timeout=30))

    def pids(self, service: str) -> list[int]:
        """The living processes of a service."""
        return [
            process["pid"]
            for process in self.status()["processes"]
            if process["service"] == service and process["ready"]
        ]

    @property
    def stem(self) -> Path:
        """What its workers are forks of; another mesh's may be, too: it starts sooner."""
        return address_of(self.run_dir).sockets / STEM_SOCKET

    def redis_pid(self) -> int:
        """The embedded Redis."""
        (found,) = self.children("redis-server")
        return found

    def children(self, name: str) -> list[int]:
        """Who was started by `tandem up` itself, with this in its command line."""
        return [
            child.pid
            for child in psutil.Process(self.up.pid).children()
            if name in " ".join(child.cmdline())
        ]

    def is_whole(self) -> bool:
        """Two workers of each kind are ready."""
        return len(self.pids("prefill")) == len(self.pids("decode")) == 2

    def scale(self, decode: int) -> None:
        """Change the number of decode workers, as `tandem scale` does. Not by a process:
        to start one stops this process for a while, and with it the clients in it.
        """
        ask(address_of(self.run_dir).sockets, Wanted(decode=decode))

    def kill(self, service: str) -> int:
        """`kill -9` one process of the service; returns its pid."""
        pid = self.pids(service)[0]
        os.kill(pid, signal.SIGKILL)
        return pid

    def blocks(self) -> dict[str, int]:
        return dict(self.status()["pools"][0]["blocks"])

    def miscounts(self) -> str:
        """What the stores found wrong with themselves."""
        logs = sorted((self.run_dir / "logs").glob("kvstore-*.log"))
        text = "".join(log.read_text() for log in logs)
        return text[text.find("AssertionError") :] if "AssertionError" in text else ""

    def is_idle(self) -> bool:
        """Every block of every pool is free or cached: nothing was leaked."""
        pools = [pool["blocks"] for pool in self.status()["pools"]]
        return bool(pools) and all(
            blocks["free"] + blocks["cached"] == blocks["total"] for blocks in pools
        )


@contextmanager
def running_mesh(model: Path | None, *options: str) -> Iterator[RunningMesh]:
    """A mesh for as long as the block lasts; its logs are shown if it does not start."""
    with tempfile.TemporaryDirectory(prefix="tandem-test-") as folder:
        command = [sys.executable, "-m", "tandem", "up"]
        command += ["--model", str(model)] if model else []
        command += ["--port", "0", "--run-dir", folder, *options]
        with subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={k: v for k, v in os.environ.items() if not k.startswith("TANDEM_")},
        ) as up:
            assert up.stdout
            line = up.stdout.readline()
            if not line.startswith("ready "):
                _, stderr = up.communicate(timeout=STOP_SECONDS)
                raise AssertionError(f"the mesh did not start: {stderr[-2000:]}")
            try:
                yield RunningMesh(line.split()[1], Path(folder), up)
            finally:
                up.send_signal(signal.SIGTERM)
                up.communicate(timeout=STOP_SECONDS)
