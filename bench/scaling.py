"""How long streams pause while workers come and go.

Starts a mesh on a model of 120 million parameters with two decode workers, streams answers
from it, takes a decode worker away in mid-sentence and gives it back in the next run. Of
each stream the longest pause is found, and how many steps it missed meanwhile. The runs in
which nothing happens show what this machine does by itself.

    make bench-scaling ARGS="--streams 8 --rounds 5"
"""

import argparse
import asyncio
import json
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import aiohttp
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench.client import connected
from bench.measures import Outcome, pause
from bench.workload import fixed
from mesh.timing import every
from models import make
from tandem.rundir import address_of
from tandem.scaling import Wanted, ask

SHAPE = "llama-120m"  # of which each token is text: none is held back
NUM_INPUT, NUM_OUTPUT = 16, 100
VOCABULARY = 1000
ANSWER_SECONDS = 120.0
START_SECONDS = 60.0  # of a worker
BEGUN_SECONDS = 1.0  # until then all streams are under way
READY = re.compile(r"ready (?P<url>http://\S+)")
SCENARIOS = {"nothing happens": None, "two workers to one": 1, "one worker to two": 2}


@contextmanager
def mesh(folder: Path) -> Iterator[str]:
    """The address of a mesh with two decode workers."""
    make(SHAPE, folder / "model")
    command = [sys.executable, "-m", "tandem", "up", "--run-dir", str(folder)]
    command += ["--model", str(folder / "model"), "--dtype", "bfloat16"]
    command += ["--max-model-len", "2048", "--port", "0", "--decode", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as up:
        assert up.stdout
        match = READY.match(up.stdout.readline())
        if match is None:
            raise SystemExit("the mesh did not start")
        try:
            yield match["url"]
        finally:
            up.send_signal(signal.SIGTERM)


async def outcomes(
    url: str, sockets: Path, num_streams: int, num_decode: int | None, seed: str
) -> list[Outcome]:
    """All streams of one round, in which the workers become so many."""
    async with (
        connected(url, "", ANSWER_SECONDS) as client,
        asyncio.TaskGroup() as tasks,
    ):
        streams = [
            tasks.create_task(client.ask(planned), name="stream")
            for planned in fixed(num_streams, NUM_INPUT, NUM_OUTPUT, VOCABULARY, seed)
        ]
        await asyncio.sleep(BEGUN_SECONDS)
        if num_decode:
            await asyncio.to_thread(ask, sockets, Wanted(decode=num_decode))
    return [stream.result() for stream in streams]


async def both_ready(url: str) -> None:
    """A worker takes seconds to start: the next round begins when it has."""
    async with asyncio.timeout(START_SECONDS), aiohttp.ClientSession(url) as http:
        async for _ in every(0.2, asyncio.Event()):
            if await _num_decoding(http) == 2:
                return


async def _num_decoding(http: aiohttp.ClientSession) -> int:
    async with http.get("/v1/pools") as response:
        workers = (await response.json())["data"][0]["workers"]
    return sum(w["ready"] and "decode" in w["phases"] for w in workers)


def measured(num_streams: int, num_rounds: int) -> dict[str, dict[str, float]]:
    """Of each scenario the pauses of all its streams, and how long a step is."""
    seen: dict[str, list[tuple[float, int]]] = {name: [] for name in SCENARIOS}
    steps: list[float] = []
    with (
        tempfile.TemporaryDirectory(prefix="tandem-bench-") as folder,
        mesh(Path(folder)) as url,
    ):
        sockets = address_of(Path(folder)).sockets
        for number in track(range(num_rounds), "rounds", transient=True):
            for name, num_decode in SCENARIOS.items():
                seed = f"{number} {name}"
                streams = asyncio.run(
                    outcomes(url, sockets, num_streams, num_decode, seed)
                )
                if failed := [s.error for s in streams if not s.is_answered]:
                    raise SystemExit(f"{len(failed)} streams failed: {failed[0]}")
                everyone = [each.times for each in streams]
                seen[name] += [pause(times, everyone) for times in everyone]
                steps += [each.tpot or 0.0 for each in streams]
            asyncio.run(both_ready(url))
    figures = {
        name: {
            "streams": len(pauses),
            "pause_ms_median": 1000 * median(seconds for seconds, _ in pauses),
            "pause_ms_most": 1000 * max(seconds for seconds, _ in pauses),
            "steps_missed_median": median(missed for _, missed in pauses),
            "steps_missed_most": max(missed for _, missed in pauses),
        }
        for name, pauses in seen.items()
    }
    return figures | {"step": {"ms_median": 1000 * median(steps)}}


def main() -> None:
    parser = argparse.ArgumentParser(description="Pauses while workers come and go.")
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures = measured(options.streams, options.rounds)
    if options.json:
        print(json.dumps(figures, indent=2))
        return
    step = figures.pop("step")["ms_median"]
    table = Table("", "streams", "pause, ms", "most", "steps missed", "most")
    table.title = f"a step is {step:.1f} ms"
    for name, figure in figures.items():
        table.add_row(name, *(f"{value:.0f}" for value in figure.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
