"""The gateway's controller on loads that change, simulated, beside shares that do not.

    make bench-controller

Two cores as `make bench-calibrate` found them, the Llama of 120 M parameters or, with
`--model demo`, the demo model on cores without bfloat16; the loads and SLOs of `tandem
experiment paradigms`. Attainment, means of six traces; in parentheses changes of the shares
per minute, and how much of the time there was a split.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from rich.console import Console
from rich.progress import track

from bench.experiments.loads import NUM_PHASES, Drawn
from bench.measures import SLO
from bench.simulation.control import EVERYTHING, Shares
from bench.simulation.costs import Costs
from bench.simulation.design import Design
from bench.simulation.devices import Device
from bench.simulation.fleet import attainment
from bench.simulation.pool import Pool, open_loop
from bench.simulation.shapes import SHAPES, shape_of
from bench.workload import Planned
from semi_pd import BEGINNING, RESULTS, Ours

FOUND = json.loads((RESULTS / "2026-11-27-simulator.json").read_text())
DEMO = Path(__file__).parent.parent / "models" / "demo"
# A chunk of 512 tokens took 60 ms on an AMD EPYC with AVX2 (15 where it was fitted), and a
# decode step of four sequences 1.6 ms.
SLOWER_PRODUCTS, SLOWER = 4.0, 2.0


class Served(NamedTuple):
    """A model on two cores, and what its clients shall see."""

    costs: Costs
    slos: SLO
    factor: float  # of the loads' rates


def llama_120m() -> Served:
    cores = Device.model_validate(FOUND["llama-120m, semi"]["device"])
    costs = Costs(SHAPES["llama-120m"], cores)
    return Served(costs, SLO(ttft=0.88, tpot=0.062), factor=1.0)


def demo() -> Served:
    found = FOUND["demo, semi"]["device"]
    slower = {name: SLOWER * found[name] for name in found if name.endswith("_seconds")}
    slower["peak_bytes"] = found["peak_bytes"] / SLOWER
    slower["peak_flops"] = found["peak_flops"] / SLOWER_PRODUCTS
    cores = Device.model_validate(found | slower)
    costs = Costs(shape_of(str(DEMO)), cores)
    return Served(costs, SLO(ttft=0.92, tpot=0.021), factor=1.4)


MODELS = {"llama-120m": llama_120m, "demo": demo}
MAX_TOKENS = 32_768  # as 2,048 blocks
NUM_TRACES = 6
SECONDS = 120.0
VOCABULARY = 1000
WINDOWS = (1.0, 5.0)  # seconds
Trace = Sequence[Planned]


class Changing(NamedTuple):
    """A load, drawn anew for each seed."""

    name: str
    drawn: Callable[[int], Trace]


def mixed(rates: Sequence[float], seed: int) -> Trace:
    """Both kinds of requests in any order, at one rate after another."""
    seconds = SECONDS / len(rates)
    load = Drawn(is_shifting=False, vocab_size=VOCABULARY)
    parts = [
        load.requests(rate, seconds, (seed, number))
        for number, rate in enumerate(rates)
    ]
    return one_after_another(parts, seconds)


def shifting(phase_seconds: float, rate: float, seed: int) -> Trace:
    """Phases of long prompts, and of long answers between them."""
    seconds = NUM_PHASES * phase_seconds
    load = Drawn(is_shifting=True, vocab_size=VOCABULARY)
    count = max(1, round(SECONDS / seconds))
    parts = [load.requests(rate, seconds, (seed, number)) for number in range(count)]
    return one_after_another(parts, seconds)


def one_after_another(parts: Sequence[Trace], seconds: float) -> Trace:
    return [
        replace(each, at=each.at + number * seconds)
        for number, part in enumerate(parts)
        for each in part
    ]


def loads(factor: float = 1.0) -> Iterator[Changing]:
    """Below the machine's limit, at it and beyond; `factor` is of their rates."""
    for rate in (4.5, 5.5, 6.5):
        yield _mixed(factor * rate)
    for phase in (6.0, 12.0, 30.0):
        for rate in (3.5, 4.5):
            yield _in_phases(phase, factor * rate)
    for phase in (0.5, 1.0, 2.0, 5.0):
        yield _in_phases(phase, factor * 5.0)
    yield _mixed(factor * 3, factor * 6.5, factor * 3)
    yield _mixed(factor * 6.5, factor * 3, factor * 6.5)


def _mixed(*rates: float) -> Changing:
    name = ", ".join(f"{rate:.3g}/s" for rate in rates)
    return Changing(f"mixed, {name}", partial(mixed, rates))


def _in_phases(phase: float, rate: float) -> Changing:
    name = f"phases of {phase:g} s, {rate:.3g}/s"
    return Changing(name, partial(shifting, phase, rate))


class Run(NamedTuple):
    attainment: float
    changes: float  # of the shares, per minute
    split: float  # part of the time in which there was one


def design(
    served: Served, shares: Shares = EVERYTHING, window_seconds: float = 0.0
) -> Design:
    """With the gateway's controller where there is a window."""
    return Design(
        "semi",
        served.costs,
        shares=shares,
        max_tokens=MAX_TOKENS,
        controller=(lambda: Ours(served.slos)) if window_seconds else None,
        window_seconds=window_seconds or SECONDS,
    )


def run(served: Served, design: Design, trace: Trace) -> Run:
    pool = Pool(design)
    outcomes = open_loop([pool], trace)
    ends = [*(since for since, _ in pool.shares[1:]), SECONDS]
    split = sum(
        end - since
        for (since, shares), end in zip(pool.shares, ends, strict=True)
        if shares != EVERYTHING
    )
    changes = 60 * (len(pool.shares) - 1) / SECONDS
    return Run(attainment(outcomes, served.slos), changes, split / SECONDS)


def mean_of(served: Served, design: Design, load: Changing) -> Run:
    runs = [run(served, design, load.drawn(seed)) for seed in range(NUM_TRACES)]
    return Run(*(fmean(each) for each in zip(*runs, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description="The controller, simulated.")
    parser.add_argument("--model", choices=MODELS, default="llama-120m")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    served = MODELS[options.model]()
    designs = {
        "100/100": design(served),
        "50/50": design(served, Shares(50, 50)),
        "70/30": design(served, BEGINNING),
        **{
            f"windows of {w:g} s": design(served, BEGINNING, window_seconds=w)
            for w in WINDOWS
        },
    }
    all_loads = list(loads(served.factor))
    found = {
        load.name: {name: mean_of(served, each, load) for name, each in designs.items()}
        for load in track(all_loads, "loads", console=Console(stderr=True))
    }
    print(json.dumps(found, indent=1) if options.json else as_markdown(found))


def as_markdown(found: dict[str, dict[str, Run]]) -> str:
    names = list(next(iter(found.values())))
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for load, runs in found.items():
        cells = [f"{each.attainment:.3f}" + _more(each) for each in runs.values()]
        lines.append(f"| {load} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _more(run: Run) -> str:
    """What the controller did."""
    return f" ({run.changes:.1f}, {run.split:.0%})" if run.changes else ""


if __name__ == "__main__":
    main()
