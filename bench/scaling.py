"""How long streams pause while workers come and go, or die.

Starts a mesh with two decode workers, streams answers from it, takes a decode worker away
in mid-sentence and gives it back in the next run, or kills one with `kill -9`. Of each
stream the longest pause is found, and how many steps it missed meanwhile. The runs in
which nothing happens show what this machine does by itself.

    make bench-scaling ARGS="--streams 8 --rounds 5"
    make bench-scaling ARGS="--shape llama-3.1-8b --streams 32 --up '--device cuda --shares 50'"
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
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench.client import connected
from bench.measures import Outcome, pause
from bench.workload import fixed
from mesh.timing import every
from models import SHAPES, make
from tandem.rundir import address_of
from tandem.scaling import Wanted, ask
from tandem.status import as_dict, read

VOCABULARY = 1000
ANSWER_SECONDS = 120.0
START_SECONDS = 120.0  # of a worker
BEGUN_SECONDS = 1.0  # until then all streams are under way
READY = re.compile(r"ready (?P<url>http://\S+)")
SCENARIOS = (
    "nothing happens",
    "two workers to one",
    "one worker to two",
    "one of two killed",
)


@dataclass(frozen=True, slots=True)
class Mesh:
    """One that runs, seen from outside."""

    url: str
    folder: Path

    def happen(self, scenario: str) -> None:
        """What a scenario is named after."""
        match scenario:
            case "two workers to one":
                self._scale(1)
            case "one worker to two":
                self._scale(2)
            case "one of two killed":
                os.kill(self._decoding()[0]["pid"], signal.SIGKILL)

    async def is_whole(self) -> None:
        """A worker takes seconds to start: the next round begins when it has."""
        async with asyncio.timeout(START_SECONDS):
            async for _ in every(0.2, asyncio.Event()):
                if len(await asyncio.to_thread(self._decoding)) == 2:
                    return

    def queried_tokens(self) -> int:
        """Of all prompts so far, a prompt that is computed again among them."""
        return int(self._status()["pools"][0]["counts"]["queried_tokens"])

    def _scale(self, decode: int) -> None:
        ask(address_of(self.folder).sockets, Wanted(decode=decode))

    def _decoding(self) -> list[dict[str, Any]]:
        return [
            process
            for process in self._status()["processes"]
            if process["service"] == "decode" and process["ready"]
        ]

    def _status(self) -> dict[str, Any]:
        return as_dict(*asyncio.run(read(address_of(self.folder).redis_url)))


@contextmanager
def running(folder: Path, model: Path, options: list[str]) -> Iterator[Mesh]:
    """A mesh with two decode workers."""
    command = [sys.executable, "-m", "tandem", "up", "--run-dir", str(folder)]
    command += ["--model", str(model), "--dtype", "bfloat16"]
    command += ["--max-model-len", "2048", "--port", "0", "--decode", "2", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as up:
        assert up.stdout
        match = READY.match(up.stdout.readline())
        if match is None:
            raise SystemExit("the mesh did not start")
        try:
            yield Mesh(match["url"], folder)
        finally:
            up.send_signal(signal.SIGTERM)


async def outcomes(
    mesh: Mesh, num_streams: int, lengths: tuple[int, int], scenario: str, seed: str
) -> list[Outcome]:
    """All streams of one round, in which that happens."""
    async with (
        connected(mesh.url, "", ANSWER_SECONDS) as client,
        asyncio.TaskGroup() as tasks,
    ):
        streams = [
            tasks.create_task(client.ask(planned), name="stream")
            for planned in fixed(num_streams, *lengths, VOCABULARY, seed)
        ]
        await asyncio.sleep(BEGUN_SECONDS)
        await asyncio.to_thread(mesh.happen, scenario)
    return [stream.result() for stream in streams]


def measured(
    mesh: Mesh, num_streams: int, lengths: tuple[int, int], num_rounds: int
) -> dict[str, dict[str, float]]:
    """Of each scenario the pauses of all its streams, and how long a step is."""
    seen: dict[str, list[tuple[float, int]]] = {name: [] for name in SCENARIOS}
    again = dict.fromkeys(SCENARIOS, 0)
    steps: list[float] = []
    for number in track(range(num_rounds), "rounds", transient=True):
        for name in SCENARIOS:
            before = mesh.queried_tokens()
            streams = asyncio.run(
                outcomes(mesh, num_streams, lengths, name, f"{number} {name}")
            )
            if failed := [s.error for s in streams if not s.is_answered]:
                raise SystemExit(f"{name}: {len(failed)} streams failed: {failed[0]}")
            everyone = [each.times for each in streams]
            seen[name] += [pause(times, everyone) for times in everyone]
            steps += [each.tpot or 0.0 for each in streams]
            asyncio.run(settled(mesh, name))
            again[name] += mesh.queried_tokens() - before - num_streams * lengths[0]
    figures = {
        name: {
            "streams": len(pauses),
            "pause_ms_median": 1000 * median(seconds for seconds, _ in pauses),
            "pause_ms_most": 1000 * max(seconds for seconds, _ in pauses),
            "steps_missed_median": median(missed for _, missed in pauses),
            "steps_missed_most": max(missed for _, missed in pauses),
            "tokens_again": again[name],
        }
        for name, pauses in seen.items()
    }
    return figures | {"step": {"ms_median": 1000 * median(steps)}}


async def settled(mesh: Mesh, scenario: str) -> None:
    """As many workers as the next scenario begins with, and their news are out."""
    await asyncio.sleep(1.0)
    if scenario != "two workers to one":
        await mesh.is_whole()


def main() -> None:
    parser = argparse.ArgumentParser(description="Pauses while workers come and go.")
    parser.add_argument("--shape", choices=SHAPES, default="llama-120m")
    parser.add_argument("--model", type=Path, help="made there, if it is not there yet")
    parser.add_argument("--up", default="", help="more options of `tandem up`")
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--tokens", type=int, nargs=2, default=[16, 100])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tandem-bench-") as folder:
        model = options.model or Path(folder) / "model"
        if not (model / "config.json").exists():
            device = "cuda" if "cuda" in options.up.split() else "cpu"
            # In a process of its own, whose memory on the GPU ends with it.
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                process.submit(partial(make, options.shape, model, device)).result()
        with running(Path(folder), model, options.up.split()) as mesh:
            lengths = options.tokens[0], options.tokens[1]
            figures = measured(mesh, options.streams, lengths, options.rounds)
    if options.json:
        print(json.dumps(figures, indent=2))
        return
    step = figures.pop("step")["ms_median"]
    table = Table(
        "", "streams", "pause, ms", "most", "steps missed", "most", "computed again"
    )
    table.title = f"a step is {step:.1f} ms"
    for name, figure in figures.items():
        table.add_row(name, *(f"{value:.0f}" for value in figure.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
