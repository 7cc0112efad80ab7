"""The gateway's controller on loads that change, simulated, beside shares that do not.

    make bench-controller

Two cores as `make bench-calibrate` found them, the Llama of 120 M parameters, the loads and
SLOs of `tandem experiment paradigms --load shifting`. Attainment, means of six traces; in
parentheses changes of the shares per minute, and how much of the time there was a split.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from statistics import fmean
from typing import NamedTuple

from bench.experiments.loads import NUM_PHASES, Drawn
from bench.measures import SLO
from bench.simulation.control import EVERYTHING, Shares
from bench.simulation.costs import Costs
from bench.simulation.design import Design
from bench.simulation.devices import Device
from bench.simulation.fleet import attainment
from bench.simulation.pool import Pool, open_loop
from bench.simulation.shapes import SHAPES
from bench.workload import Planned
from semi_pd import RESULTS, Ours

FOUND = json.loads((RESULTS / "2026-11-27-simulator.json").read_text())
CORES = Device.model_validate(FOUND["llama-120m, semi"]["device"])
COSTS = Costs(SHAPES["llama-120m"], CORES)
SLOS = SLO(ttft=0.88, tpot=0.062)
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


LOADS = (
    *(
        Changing(f"mixed, {rate:g}/s", partial(mixed, [rate]))
        for rate in (4.5, 5.5, 6.5)
    ),
    *(
        Changing(f"phases of {phase:g} s, {rate:g}/s", partial(shifting, phase, rate))
        for phase in (6.0, 12.0, 30.0)
        for rate in (3.5, 4.5)
    ),
    *(
        Changing(f"phases of {phase:g} s, 5/s", partial(shifting, phase, 5.0))
        for phase in (0.5, 1.0, 2.0, 5.0)
    ),
    Changing("mixed, 3/s, 6.5/s, 3/s", partial(mixed, (3, 6.5, 3))),
    Changing("mixed, 6.5/s, 3/s, 6.5/s", partial(mixed, (6.5, 3, 6.5))),
)


class Run(NamedTuple):
    attainment: float
    changes: float  # of the shares, per minute
    split: float  # part of the time in which there was one


def design(shares: Shares = EVERYTHING, window_seconds: float = 0.0) -> Design:
    """With the gateway's controller where there is a window."""
    return Design(
        "semi",
        COSTS,
        shares=shares,
        max_tokens=MAX_TOKENS,
        controller=(lambda: Ours(SLOS)) if window_seconds else None,
        window_seconds=window_seconds or SECONDS,
    )


def run(design: Design, trace: Trace) -> Run:
    pool = Pool(design)
    outcomes = open_loop([pool], trace)
    ends = [*(since for since, _ in pool.shares[1:]), SECONDS]
    split = sum(
        end - since
        for (since, shares), end in zip(pool.shares, ends, strict=True)
        if shares != EVERYTHING
    )
    changes = 60 * (len(pool.shares) - 1) / SECONDS
    return Run(attainment(outcomes, SLOS), changes, split / SECONDS)


def mean_of(design: Design, load: Changing) -> Run:
    runs = [run(design, load.drawn(seed)) for seed in range(NUM_TRACES)]
    return Run(*(fmean(each) for each in zip(*runs, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description="The controller, simulated.")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    designs = {
        "100/100": design(),
        "50/50": design(Shares(50, 50)),
        **{f"windows of {w:g} s": design(window_seconds=w) for w in WINDOWS},
    }
    found = {
        load.name: {name: mean_of(each, load) for name, each in designs.items()}
        for load in LOADS
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
