"""What the mesh adds to a request and to a token, with an engine that does no work.

Starts a whole mesh on this machine with one prefill and one decode worker whose engine
only counts, so all that is measured is ours: gateway, Redis, store, handoff. Then

* TTFT: requests one after the other; a request's way is taken apart with the times that
  the services log at debug level;
* per token: 16 concurrent streams; (E2E - TTFT) / (output tokens - 1) of each, and the
  processor time that each process spent per step. The client's own share is measured,
  and is part of the total: it runs on the same cores.

    make bench-overhead ARGS="--json"
"""

import argparse
import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from rich.console import Console
from rich.progress import track
from rich.table import Table

NUM_WARM_UP = 20
NUM_PROMPT_TOKENS = 64
ANSWER_SECONDS = 60
TIMELINE = ("request.submitted", "job.taken", "tokens.posting", "tokens.received")
PARTS = ("stream to worker", "store and step", "reply to gateway")
READY = re.compile(r"ready http://(?P<host>[^:]+):(?P<port>\d+)")


@dataclass(frozen=True, slots=True)
class Answer:
    """One streamed answer, in seconds after it was sent."""

    ttft: float
    e2e: float
    num_tokens: int

    @property
    def tpot(self) -> float:
        return (self.e2e - self.ttft) / (self.num_tokens - 1)


class Mesh:
    """A running mesh, seen from outside."""

    def __init__(self, run_dir: Path, host: str, port: int, up: psutil.Process) -> None:
        self.run_dir = run_dir
        self.host = host
        self.port = port
        self.processes = {_name(process): process for process in up.children()}

    def cpu_seconds(self) -> dict[str, float]:
        times = {name: p.cpu_times() for name, p in self.processes.items()}
        own = os.times()
        return {name: t.user + t.system for name, t in times.items()} | {
            "client": own.user + own.system
        }

    def log_lines(self) -> Iterator[dict[str, Any]]:
        for path in self.run_dir.glob("logs/*.log"):
            for line in path.read_text().splitlines():
                if line.startswith("{"):
                    yield json.loads(line)


def _name(process: psutil.Process) -> str:
    command = process.cmdline()
    return command[command.index("-m") + 1] if "-m" in command else "redis"


@contextmanager
def mesh(model: Path, log_level: str) -> Iterator[Mesh]:
    """A mesh of one worker of each kind while the block lasts."""
    with tempfile.TemporaryDirectory(prefix="tandem-bench-") as folder:
        command = [sys.executable, "-m", "tandem", "up", "--model", str(model)]
        command += ["--engine", "counting", "--port", "0", "--run-dir", folder]
        command += ["--served-model-name", "bench", "--log-level", log_level]
        command += ["--log-format", "json"]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as up:
            assert up.stdout
            match = READY.match(up.stdout.readline())
            if match is None:
                raise SystemExit("the mesh did not start")
            host, port = match["host"], int(match["port"])
            try:
                yield Mesh(Path(folder), host, port, psutil.Process(up.pid))
            finally:
                up.send_signal(signal.SIGTERM)


class Client(asyncio.Protocol):
    """Streams one completion over a connection of its own, and only watches the clock:
    the client shares the machine with what it measures."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._tail = b""
        self._first = 0.0
        self.answer: asyncio.Future[tuple[float, float]] = (
            asyncio.get_running_loop().create_future()
        )

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport
        self._sent = time.perf_counter()
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._tail = (self._tail + data)[-512:]
        if not self._first and b"data: " in self._tail:
            self._first = time.perf_counter()
        if b"[DONE]" in self._tail[-32:]:
            now = time.perf_counter()
            self.answer.set_result((self._first - self._sent, now - self._sent))
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.answer.done():
            self.answer.set_exception(ConnectionError(self._tail.decode()))


async def ask(mesh: Mesh, num_tokens: int) -> Answer:
    body = json.dumps(
        {
            "model": "bench",
            "prompt": list(range(3, 3 + NUM_PROMPT_TOKENS)),
            "max_tokens": num_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
        }
    )
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}"
    request = f"{head}\r\nContent-Type: application/json\r\n\r\n{body}".encode()
    loop = asyncio.get_running_loop()
    _, client = await loop.create_connection(
        lambda: Client(request), mesh.host, mesh.port
    )
    async with asyncio.timeout(ANSWER_SECONDS):
        ttft, e2e = await client.answer
    return Answer(ttft, e2e, num_tokens)


async def one_by_one(mesh: Mesh, num_requests: int) -> list[Answer]:
    """Requests for two tokens, each alone: TTFT, then the handoff to decode."""
    for _ in range(NUM_WARM_UP):
        await ask(mesh, 2)
    console = Console(stderr=True)
    rounds = track(range(num_requests), "one by one", console=console, transient=True)
    return [await ask(mesh, 2) for _ in rounds]


async def side_by_side(mesh: Mesh, num_streams: int, num_tokens: int) -> list[Answer]:
    """That many streams at once."""
    return await asyncio.gather(*(ask(mesh, num_tokens) for _ in range(num_streams)))


def timeline(mesh: Mesh) -> dict[str, float]:
    """Median seconds between the moments that the services log for each request."""
    moments: dict[str, dict[str, float]] = {}
    for line in mesh.log_lines():
        if line.get("event") in TIMELINE:
            when = datetime.fromisoformat(line["timestamp"]).timestamp()
            moment = moments.setdefault(line["request_id"], {})
            moment[line["event"]] = min(when, moment.get(line["event"], when))
    whole = [at for at in moments.values() if len(at) == len(TIMELINE)]
    steps = zip(PARTS, pairwise(TIMELINE), strict=True)
    return {
        part: median(at[end] - at[begin] for at in whole)
        for part, (begin, end) in steps
    }


def measure_ttft(args: argparse.Namespace) -> dict[str, Any]:
    with mesh(args.model, "info") as quiet:
        answers = asyncio.run(one_by_one(quiet, args.requests))
    with mesh(args.model, "debug") as talking:
        asyncio.run(one_by_one(talking, args.requests))
        parts = timeline(talking)
    return {
        "ttft_ms": spread([answer.ttft for answer in answers]),
        "handoff_ms": spread([answer.tpot for answer in answers]),
        "parts_ms": {part: round(1e3 * at, 3) for part, at in parts.items()},
    }


def measure_tokens(args: argparse.Namespace) -> dict[str, Any]:
    tpots, cpu = [], []
    with mesh(args.model, "info") as running:
        asyncio.run(side_by_side(running, args.streams, 32))
        rounds = range(args.repeats)
        for _ in track(rounds, "streams", console=Console(stderr=True), transient=True):
            before = running.cpu_seconds()
            answers = asyncio.run(side_by_side(running, args.streams, args.tokens))
            after = running.cpu_seconds()
            tpots.append(median(answer.tpot for answer in answers))
            cpu.append({name: after[name] - before[name] for name in after})
    return {
        "tpot_ms": spread(tpots),
        "cpu_ms_per_step": {
            name: round(1e3 * median(times[name] for times in cpu) / args.tokens, 3)
            for name in cpu[0]
        },
    }


def spread(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    tenth = len(ordered) // 10
    return {
        "median": round(1e3 * median(ordered), 3),
        "p10": round(1e3 * ordered[tenth], 3),
        "p90": round(1e3 * ordered[-1 - tenth], 3),
    }


def show(result: dict[str, Any], args: argparse.Namespace) -> None:
    table = Table("what", "median ms", "p10", "p90", title="the mesh's own overhead")
    for what, name in (
        ("TTFT, one request at a time", "ttft_ms"),
        ("handoff: first to second token", "handoff_ms"),
        (f"per token, {args.streams} concurrent streams", "tpot_ms"),
    ):
        row = result[name]
        table.add_row(what, *(f"{row[key]:.3f}" for key in ("median", "p10", "p90")))
    parts = Table("part", "ms", title="where the time goes")
    http = result["ttft_ms"]["median"] - sum(result["parts_ms"].values())
    for part, at in result["parts_ms"].items():
        parts.add_row(f"TTFT: {part}", f"{at:.3f}")
    parts.add_row("TTFT: HTTP in, first event out (the rest)", f"{http:.3f}")
    for name, at in result["cpu_ms_per_step"].items():
        parts.add_row(f"processor time per step: {name}", f"{at:.3f}")
    console = Console()
    console.print(table)
    console.print(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path("models/stories260K"))
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    result = measure_ttft(args) | measure_tokens(args)
    if args.json:
        print(json.dumps(result, indent=2))
    else:
        show(result, args)


if __name__ == "__main__":
    main()
