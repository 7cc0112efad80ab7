"""The main figures of semi-PD's paper (arXiv 2504.19867), simulated: Llama-3-8B on A100.

    make bench-semi-pd

Rates are per GPU. From the paper: GPU, SLOs, systems and their settings (vLLM 0.6.0 with
chunks of 1,024 and without, DistServe with one chip of each phase, batches of at most
512), and what is compared. Not from the paper, which does not tell:

* Host time. Single requests take a 7.5th of the tight SLOs, it says: 40 ms for a prompt of
  ShareGPT, 20 ms a token. A decode step of the 8B shape on an A100 needs 9 ms of the GPU:
  so 8 ms of each step are the host's. With vLLM before 0.6.0 an H100 was busy 38 % of the
  time (blog.vllm.ai, 2024-09-05): a tenth of a millisecond for each sequence in a step
  makes that of a batch of some hundred. Assumed of all systems alike.
* Lengths. Prompts as long as the SLOs of single requests say: 420 tokens, and 3,500 of
  LongBench. Answers of 200 and 90 tokens, as DistServe's paper (arXiv 2401.09670) has
  them. Log-normal, with standard deviations of 1 and 0.5 of the mean.
* The controller. Algorithm 1 of the paper names no values and fits models; "dynamic" takes a
  step of 20 in each window of 20 s in which one phase alone fails. Beside it is the gateway's
  own controller, with its windows of 5 s.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from math import inf
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.progress import track

import gateway.controller
import gateway.splits
import gateway.windows
from bench.measures import SLO, quantile
from bench.simulation.control import Shares, Window
from bench.simulation.costs import Costs
from bench.simulation.design import Design
from bench.simulation.devices import DEVICES
from bench.simulation.fleet import WANTED, attainment
from bench.simulation.loads import Lengths, at_rate
from bench.simulation.pool import Pool, open_loop
from bench.simulation.shapes import SHAPES
from bench.simulation.worker import Rules
from bench.workload import Planned, poisson
from gateway.windows import Goals
from protocol import messages

RESULTS = Path(__file__).parent / "results"
A100 = DEVICES["a100-80g"].model_copy(
    update={"step_seconds": 0.008, "sequence_seconds": 0.0001}
)
COSTS = Costs(SHAPES["llama-3-8b"], A100)
MAX_BATCH = 512
NVLINK = 300e9  # bytes per second, one way, of an A100
NUM_REQUESTS = 1000
SECONDS, FILLING_SECONDS = 300.0, 60.0  # until a controller has found its shares
PRECISION = 1.03


class Setting(NamedTuple):
    """A data set with one of the two SLOs that the paper has for it."""

    name: str
    lengths: Lengths
    slo: SLO
    rates: Sequence[float]  # of the pictures


SHAREGPT, LONGBENCH = Lengths(420, 200, 1.0), Lengths(3500, 90, 0.5)
SETTINGS = (
    Setting("ShareGPT, tight", SHAREGPT, SLO(0.3, 0.15), range(6, 19)),
    Setting("ShareGPT, loose", SHAREGPT, SLO(0.4, 0.2), range(6, 19)),
    Setting(
        "LongBench, tight", LONGBENCH, SLO(2.25, 0.13), [n / 4 for n in range(4, 13)]
    ),
    Setting(
        "LongBench, loose", LONGBENCH, SLO(3.0, 0.18), [n / 4 for n in range(4, 13)]
    ),
)
DYNAMIC, OURS, FIXED = "semi, dynamic", "semi, ours", "semi, 100/100"
CHUNKED, WHOLE, APART = "vLLM-S", "vLLM-D", "DistServe"
# Rate with at least 90 % attainment, dynamic by this one; means over two models and both
# data sets (section 7.2.2).
PAPER = {FIXED: 1.11, CHUNKED: 1.55, WHOLE: 1.72, APART: 1.62}
# Figure 3, Llama-3-8B: most of the KV memory in use, prefill's chip and decode's, percent.
PAPER_USAGE = {"ShareGPT": (1.68, 57.33), "LongBench": (24.59, 99.93)}


class Stepping:
    """Moves the shares towards the phase that fails alone, a step in each window."""

    def __init__(self, slo: SLO, step: int = 20, least: int = 20) -> None:
        self._ttft, self._tpot = slo.ttft or inf, slo.tpot or inf
        self._step = step
        self._least = least

    def decide(self, window: Window) -> Shares:
        if not (window.ttfts and window.tpots):
            return window.shares
        prompts_fail = quantile(sorted(window.ttfts), WANTED) > self._ttft
        tokens_fail = quantile(sorted(window.tpots), WANTED) > self._tpot
        prefill, decode = window.shares
        if prompts_fail == tokens_fail:
            return window.shares
        if prompts_fail:
            return Shares(*self._raised(prefill, decode))
        decode, prefill = self._raised(decode, prefill)
        return Shares(prefill, decode)

    def _raised(self, this: int, other: int) -> tuple[int, int]:
        """At 100 there is no more; then the other one gives way."""
        if this < 100:
            return min(100, this + self._step), other
        return this, max(self._least, other - self._step)


BEGINNING = Shares(gateway.splits.FIRST.prefill, gateway.splits.FIRST.decode)


class Ours:
    """The gateway's controller, in the words of the simulator, from `BEGINNING` on."""

    def __init__(self, slo: SLO) -> None:
        self._controller = gateway.controller.Controller(
            Goals(slo.ttft or inf, slo.tpot or inf, round(100 * WANTED))
        )

    def decide(self, window: Window) -> Shares:
        prefill, decode = window.shares
        seen = gateway.windows.Window(
            shares=messages.Shares(prefill=prefill, decode=decode),
            ttfts=window.ttfts,
            tpots=window.tpots,
            load=window.num_prompt_tokens / window.seconds,
            num_begun=window.num_begun,
            num_ended=window.num_ended,
        )
        verdict = self._controller.decide(seen)
        return Shares(verdict.shares.prefill, verdict.shares.decode)


def systems(slo: SLO) -> dict[str, Design]:
    whole = Rules(max_num_batched_tokens=8192, max_num_seqs=MAX_BATCH)
    chunks = Rules(max_num_batched_tokens=1024, max_num_seqs=MAX_BATCH)
    before = Rules(
        max_num_batched_tokens=8192, max_num_seqs=MAX_BATCH, prompts="before"
    )
    return {
        DYNAMIC: Design(
            "semi",
            COSTS,
            prefill=whole,
            decode=whole,
            controller=lambda: Stepping(slo),
            window_seconds=20.0,
        ),
        OURS: Design(
            "semi",
            COSTS,
            prefill=whole,
            decode=whole,
            shares=BEGINNING,
            controller=lambda: Ours(slo),
            window_seconds=5.0,
        ),
        FIXED: Design("semi", COSTS, prefill=whole, decode=whole),
        CHUNKED: Design("fused", COSTS, decode=chunks),
        WHOLE: Design("fused", COSTS, decode=before),
        APART: Design(
            "disaggregated",
            COSTS,
            prefill=whole,
            decode=whole,
            transfer_bytes=NVLINK,
        ),
    }


@dataclass(frozen=True, slots=True)
class Point:
    """A system at a rate."""

    attainment: float
    ttft_p90: float  # milliseconds
    tpot_p90: float
    usage: dict[str, float]  # the most of each kind of chip's memory


def requests(setting: Setting) -> list[Planned]:
    """At one per second; the same for all systems."""
    seed = setting.lengths
    return poisson(setting.lengths.planned(NUM_REQUESTS, seed), 1.0, seed)


def at(design: Design, planned: Sequence[Planned], slo: SLO, rate: float) -> Point:
    """At so many requests per second for each of its GPUs."""
    pool = Pool(design)
    total = rate * design.num_chips
    outcomes = open_loop([pool], at_rate(planned, total, SECONDS))
    settled = [each for each in outcomes if each.sent >= FILLING_SECONDS]
    return Point(
        attainment=attainment(settled, slo),
        ttft_p90=_p90([each.ttft for each in settled]),
        tpot_p90=_p90([each.tpot for each in settled if each.tpot]),
        usage={name: room.most / room.capacity for name, room in pool.rooms},
    )


def _p90(seconds: Sequence[float]) -> float:
    return 1000 * quantile(sorted(seconds), 0.9)


def most(design: Design, planned: Sequence[Planned], slo: SLO, near: float) -> float:
    """The highest rate with enough attainment; the search begins near one."""
    least = highest = near
    while at(design, planned, slo, least).attainment < WANTED:
        least, highest = least / 1.3, least
    while least == highest or at(design, planned, slo, highest).attainment >= WANTED:
        least, highest = highest, highest * 1.3
    while highest / least > PRECISION:
        middle = (least * highest) ** 0.5
        if at(design, planned, slo, middle).attainment >= WANTED:
            least = middle
        else:
            highest = middle
    return least


def main() -> None:
    parser = argparse.ArgumentParser(description="Simulate semi-PD's main figures.")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    highest: dict[str, dict[str, float]] = {}
    curves: dict[str, dict[str, dict[float, Point]]] = {}
    usage: dict[str, dict[str, float]] = {}
    console = Console(stderr=True)
    for setting in track(SETTINGS, "settings", console=console, transient=True):
        planned, near = requests(setting), setting.rates[len(setting.rates) // 2]
        highest[setting.name] = {}
        curves[setting.name] = {}
        for name, design in systems(setting.slo).items():
            highest[setting.name][name] = most(design, planned, setting.slo, near)
            curves[setting.name][name] = {
                rate: at(design, planned, setting.slo, rate) for rate in setting.rates
            }
        rate = highest[setting.name][APART]
        apart = systems(setting.slo)[APART]
        usage[setting.name] = at(apart, planned, setting.slo, rate).usage
    stem = RESULTS / f"{date.today()}-semi-pd-simulated"
    draw(curves, stem.with_suffix(".png"))
    table = as_markdown(highest, usage)
    points = {
        setting: {
            name: {f"{rate:g}": _flat(point) for rate, point in curve.items()}
            for name, curve in systems_.items()
        }
        for setting, systems_ in curves.items()
    }
    found = {"highest_rates": highest, "kv_usage": usage, "curves": points}
    stem.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1) if options.json else table)
    console.print(f"written to {stem}.png and .json")


def _flat(point: Point) -> list[float]:
    """Attainment, P90 TTFT and P90 TPOT."""
    return [
        round(point.attainment, 3),
        round(point.ttft_p90, 1),
        round(point.tpot_p90, 1),
    ]


def as_markdown(
    highest: dict[str, dict[str, float]], usage: dict[str, dict[str, float]]
) -> str:
    names = [DYNAMIC, OURS, *PAPER]
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for setting, rates in highest.items():
        cells = [f"{rates[name]:.2f}" for name in names]
        lines.append(f"| {setting}, requests/s | " + " | ".join(cells) + " |")
    for setting, rates in highest.items():
        cells = [f"{rates[DYNAMIC] / rates[name]:.2f}" for name in names]
        lines.append(f"| {setting}, dynamic by it | " + " | ".join(cells) + " |")
    cells = ["1.00", "", *(f"{ratio:.2f}" for ratio in PAPER.values())]
    lines.append("| paper, dynamic by it | " + " | ".join(cells) + " |")
    lines += ["", "| KV memory in use, DistServe | prefill, % | decode, % | paper |"]
    lines.append("|---|---|---|---|")
    for setting, by_phase in usage.items():
        prefill, decode = PAPER_USAGE[setting.split(",")[0]]
        cells = [f"{100 * by_phase[phase]:.1f}" for phase in ("prefill", "decode")]
        lines.append(f"| {setting} | {' | '.join(cells)} | {prefill}, {decode} |")
    return "\n".join(lines)


def draw(curves: dict[str, dict[str, dict[float, Point]]], path: Path) -> None:
    """What the paper draws in figures 12 and 15: attainment, TTFT and TPOT by rate."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, rows = pyplot.subplots(len(curves), 3, figsize=(13, 3.2 * len(curves)))
    for axes, (setting, by_system) in zip(rows, curves.items(), strict=True):
        slo = next(each.slo for each in SETTINGS if each.name == setting)
        for name, points in by_system.items():
            series = list(points.values())
            style = "-" if name.startswith("semi") else "--"
            for axis, values in zip(
                axes,
                (
                    [point.attainment for point in series],
                    [point.ttft_p90 for point in series],
                    [point.tpot_p90 for point in series],
                ),
                strict=True,
            ):
                axis.plot(list(points), values, style, marker=".", label=name)
        limits = (None, 1000 * (slo.ttft or 0), 1000 * (slo.tpot or 0))
        labels = (f"{setting}: SLO attainment", "P90 TTFT, ms", "P90 TPOT, ms")
        for axis, label, limit in zip(axes, labels, limits, strict=True):
            axis.set(xlabel="requests/s per GPU", ylabel=label)
            axis.set_ylim(0, 1.02 if limit is None else 3 * limit)
            axis.axhline(WANTED if limit is None else limit, color="grey", lw=0.7)
        axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
