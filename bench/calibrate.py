"""The simulator beside the real mesh on this machine: calibrated on some loads, and
compared on others that it has not seen.

    make bench-calibrate ARGS="--shape llama-120m --paradigm semi"

Writes the calibrated device for `tandem simulate --device FILE`.
"""

import argparse
import asyncio
import json
import os
import random
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench.client import Client, connected
from bench.experiments.meshes import serving
from bench.experiments.systems import System
from bench.load import closed_loop, open_loop
from bench.measures import Outcome
from bench.simulation.calibration import (
    Load,
    Times,
    error,
    fitted,
    middle_of,
    on,
    predicted,
    typical_mean,
)
from bench.simulation.control import Shares
from bench.simulation.costs import Costs
from bench.simulation.design import Design
from bench.simulation.devices import Device
from bench.simulation.loads import Lengths
from bench.simulation.shapes import shape_of
from bench.workload import FIRST_TOKEN, Planned, poisson
from models import SHAPES, make

DEMO = Path(__file__).parent.parent / "models" / "demo"
VOCABULARY = 1000
NUM_BLOCKS, BLOCK_SIZE = 4096, 16
ANSWER_SECONDS = 120.0
READ = TypeAdapter(list[list[Outcome]])

console = Console(stderr=True)

# Of this machine a guess, where the fit begins. What is fitted is what is achieved.
GUESS = Device(
    name="cpu",
    peak_flops=1e12,
    peak_bytes=20e9,
    memory_bytes=1e12,
    compute_efficiency=1.0,
    memory_efficiency=1.0,
    compute_elasticity=0.5,
    memory_elasticity=0.5,
    contention=0.0,  # the elasticities have it
    step_seconds=0.001,
    sequence_seconds=0.0002,
    handoff_seconds=0.003,
    door_seconds=0.001,
    request_seconds=0.003,
    num_cores=os.cpu_count() or 1,
)
# One fit may end where no small change helps, and another one is twice as near.
BEGINNINGS = [
    {"peak_flops": flops, "request_seconds": seconds}
    for flops in (1e12, 2e11)
    for seconds in (0.003, 0.006)
]
FITTED = (
    "peak_flops",
    "peak_bytes",
    "step_seconds",
    "sequence_seconds",
    "door_seconds",
    "request_seconds",
)
# Where there are two workers.
FITTED_APART = ("handoff_seconds", "compute_elasticity", "memory_elasticity")


@dataclass(frozen=True, slots=True)
class Seen:
    """A load, and what the real mesh made of it."""

    load: Load
    outcomes: Sequence[Outcome]  # round after round

    @property
    def rounds(self) -> list[Sequence[Outcome]]:
        size, flat = len(self.load.planned), self.outcomes
        return [flat[at : at + size] for at in range(0, len(flat), size)]

    def medians(self) -> Times:
        return middle_of(self.outcomes)

    def means(self) -> Times:
        return typical_mean(self.rounds)


def calibrating(scale: float) -> list[Load]:
    """Each shows something else: prompts alone, streams alone, both together.

    Prompts alone come with pauses, as arrivals do: after one everything is cold, and takes
    longer than at once after the prompt before. Short answers show what the way from one
    phase to the other takes. Where clients ask again and again lengths differ: with equal
    ones all ask at once or evenly, and a hundredth of a time decides between the two.
    """
    loads = [
        _arriving(f"prompts of {n}", Lengths(n, 1), 1.5 * scale, 8)
        for n in (64, 256, 768)
    ]
    loads += [
        Load(f"{n} streams", Lengths(64, 64, 0.5).planned(max(6, 2 * n), n), n)
        for n in (1, 4, 16)
    ]
    loads += [
        Load("8 at once", Lengths(384, 48, 0.5).planned(24, 8), num_clients=8),
        _arriving("short answers", Lengths(256, 8), 1.5 * scale, 8),
        _arriving("mixed arrivals", Lengths(384, 48, 0.5), 2.5 * scale, 24),
    ]
    return loads


def checking(scale: float) -> list[Load]:
    return [
        _arriving("even", Lengths(256, 64, 0.5), 2.5 * scale, 24),
        _arriving("long prompts", Lengths(768, 16, 0.5), 1.5 * scale, 24),
        _arriving("long answers", Lengths(64, 128, 0.5), 3 * scale, 24),
    ]


def _arriving(name: str, lengths: Lengths, rate: float, count: int) -> Load:
    planned = poisson(lengths.planned(count, name), rate, name)
    title = f"{name}, {lengths.num_input}/{lengths.num_output} at {rate:g}/s"
    return Load(title, planned)


def as_simulated(paradigm: str) -> System:
    options = ["--paradigm", paradigm, "--dtype", "bfloat16"]
    options += ["--kv-blocks", str(NUM_BLOCKS), "--block-size", str(BLOCK_SIZE)]
    if paradigm == "semi":
        options += ["--shares", "50"]  # else they follow the queue
    return System(paradigm, tuple(options))


async def measured(
    system: System, model: Path, loads: Sequence[Load], num_rounds: int
) -> list[list[Outcome]]:
    async with (
        serving(system, ["--model", str(model)]) as url,
        connected(url, "", ANSWER_SECONDS) as client,
    ):
        await _ask(client, Load("warm-up", Lengths(512, 64).planned(16, ""), 4))
        return await in_rounds(partial(_ask, client), loads, num_rounds)


async def in_rounds(
    ask: Callable[[Load], Awaitable[list[Outcome]]],
    loads: Sequence[Load],
    num_rounds: int,
) -> list[list[Outcome]]:
    """Of each load the outcomes of all rounds. A round has all loads, so a machine that
    is slower for a while is slower for those that are fitted and those that are compared.
    """
    rounds = [
        [await ask(with_prompts(load, number)) for load in loads]
        for number in track(range(num_rounds), "measuring", console=console)
    ]
    return [list(chain.from_iterable(each)) for each in zip(*rounds, strict=True)]


def with_prompts(load: Load, number: int) -> Load:
    """Each round has tokens of its own, or they would be cached."""
    rng = random.Random(f"prompts of {load.name}, round {number}")
    return replace(load, planned=[_with_prompt(each, rng) for each in load.planned])


def _with_prompt(planned: Planned, rng: random.Random) -> Planned:
    prompt = (rng.randrange(FIRST_TOKEN, VOCABULARY) for _ in planned.prompt)
    return replace(planned, prompt=tuple(prompt))


async def _ask(client: Client, load: Load) -> list[Outcome]:
    if load.num_clients:
        outcomes = await closed_loop(load.planned, client.ask, load.num_clients)
    else:
        outcomes = await open_loop(load.planned, client.ask)
    if failed := [each.error for each in outcomes if not each.is_answered]:
        raise SystemExit(f"{len(failed)} requests failed: {failed[0]}")
    return outcomes


def design_of(model: str, paradigm: str) -> Design:
    """As the mesh is; each phase has half of the cores while both compute."""
    return Design(
        "fused" if paradigm == "fused" else "semi",
        Costs(shape_of(model), GUESS),
        shares=Shares(50, 50),
        max_tokens=NUM_BLOCKS * BLOCK_SIZE,
    )


def calibrated(design: Design, seen: Sequence[Seen]) -> Device:
    """The nearest of some fits."""
    pairs = [(each.load, each.medians()) for each in seen]
    names = FITTED if design.kind == "fused" else (*FITTED, *FITTED_APART)

    def distance(device: Device) -> float:
        return error(on(design, device), pairs)

    found = [
        fitted(GUESS.model_copy(update=beginning), names, distance)
        for beginning in track(BEGINNINGS, "fitting", console=console)
    ]
    return min(found, key=distance)


def figures(
    design: Design,
    seen: Sequence[Seen],
    times: Callable[[Seen], Times],
) -> list[dict[str, Any]]:
    rows = []
    for each in seen:
        simulated = Seen(each.load, predicted(design, each.load))
        found, measured = times(simulated), times(each)
        row: dict[str, Any] = {"load": each.load.name}
        for name, ours, real in zip(("ttft", "tpot"), found, measured, strict=True):
            if ours is not None and real is not None:
                row[f"{name}_ms"] = 1000 * real
                row[f"{name}_ms_predicted"] = 1000 * ours
                row[f"{name}_error"] = ours / real - 1
        rows.append(row)
    return rows


def as_table(rows: Sequence[dict[str, Any]], title: str) -> Table:
    table = Table("load", title=title, title_justify="left")
    for name in ("TTFT, ms", "predicted", "error", "TPOT, ms", "predicted", "error"):
        table.add_column(name, justify="right")
    for row in rows:
        cells = []
        for name in ("ttft", "tpot"):
            if f"{name}_ms" in row:
                cells += [f"{row[f'{name}_ms']:.1f}"]
                cells += [f"{row[f'{name}_ms_predicted']:.1f}"]
                cells += [f"{100 * row[f'{name}_error']:+.0f} %"]
            else:
                cells += ["", "", ""]
        table.add_row(row["load"], *cells)
    return table


def measure(options: argparse.Namespace, loads: Sequence[Load]) -> list[list[Outcome]]:
    with tempfile.TemporaryDirectory(prefix="tandem-bench-") as folder:
        model = DEMO if options.shape == "demo" else options.model
        if model is None:
            model = Path(folder)
            make(options.shape, model)
        system = as_simulated(options.paradigm)
        return asyncio.run(measured(system, model, loads, options.rounds))


def main() -> None:
    parser = argparse.ArgumentParser(description="Calibrate the simulator.")
    parser.add_argument("--shape", choices=["demo", *SHAPES], default="llama-120m")
    parser.add_argument("--model", type=Path, help="of that shape, if there is one")
    parser.add_argument("--paradigm", choices=["semi", "fused"], default="semi")
    parser.add_argument("--scale", type=float, default=1.0, help="of the rates")
    parser.add_argument("--rounds", type=int, default=3, help="of all loads, in turn")
    parser.add_argument(
        "--measured",
        type=Path,
        help="measure and write it there, no more; or, if it is there, read it",
    )
    parser.add_argument("--device", type=Path, help="where to write the device")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    to_fit, to_check = calibrating(options.scale), checking(options.scale)
    loads = [*to_fit, *to_check]
    if options.measured and options.measured.exists():
        outcomes = READ.validate_json(options.measured.read_bytes())
    else:
        outcomes = measure(options, loads)
        if options.measured:
            options.measured.write_bytes(READ.dump_json(outcomes))
            return
    seen = [Seen(*each) for each in zip(loads, outcomes, strict=True)]
    seen_to_fit, seen_to_check = seen[: len(to_fit)], seen[len(to_fit) :]
    shape = str(DEMO) if options.shape == "demo" else options.shape
    design = design_of(shape, options.paradigm)
    device = calibrated(design, seen_to_fit)
    if options.device:
        options.device.write_text(device.model_dump_json(indent=2) + "\n")
    design = on(design, device)
    fit = figures(design, seen_to_fit, Seen.medians)
    check = figures(design, seen_to_check, Seen.means)
    if options.json:
        result = {"device": device.model_dump(), "calibrated": fit, "compared": check}
        print(json.dumps(result, indent=2))
        return
    name = f"{options.shape}, {options.paradigm}"
    Console().print(as_table(fit, f"{name}: calibrated on, medians"))
    Console().print(as_table(check, f"{name}: compared on, medians of means"))


if __name__ == "__main__":
    main()
