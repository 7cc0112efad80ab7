"""Draws what semi-PD's paper draws: latencies and attainment by rate, memory and shares
over time. Needs matplotlib.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.experiments.findings import Findings, Measured, Value, time_of
from bench.experiments.sweep import WANTED

HIGHEST = 3.0  # times the SLO: what is drawn of a latency


def draw(findings: Findings, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, rows = pyplot.subplots(4, 2, figsize=(12, 14))
    for axes, name, slo in zip(
        rows, ("ttft", "tpot"), (findings.ttft_slo, findings.tpot_slo), strict=False
    ):
        for axis, part in zip(axes, ("p90", "p99"), strict=True):
            _by_rate(axis, findings.systems, time_of(f"{name}_ms", part))
            axis.set_ylabel(f"{part.upper()} {name.upper()}, ms")
            axis.axhline(1000 * slo, color="grey", linewidth=0.7)
            axis.set_ylim(0, min(axis.get_ylim()[1], HIGHEST * 1000 * slo))
    _by_rate(rows[2][0], findings.systems, lambda point: point.attainment)
    rows[2][0].set(ylabel="SLO attainment", ylim=(0, 1.02))
    rows[2][0].axhline(WANTED, color="grey", linewidth=0.7)
    _by_rate(rows[2][1], findings.systems, time_of("e2e_ms", "mean"))
    rows[2][1].set(ylabel="mean E2E, ms", ylim=(0, None))
    _memory(rows[3][0], findings)
    _shares(rows[3][1], findings.systems)
    rows[0][0].legend(fontsize=8)
    figure.suptitle(findings.title)
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def _by_rate(axis: Any, systems: Sequence[Measured], value: Value) -> None:
    """A line through the medians, a dot for each point."""
    for system in systems:
        medians = [(rate, system.figure(rate, value)) for rate in system.rates]
        known = [(rate, v) for rate, v in medians if v is not None]
        style = "-" if system.name.startswith("semi") else "--"
        (line,) = axis.plot(
            [rate for rate, _ in known],
            [v for _, v in known],
            style,
            label=system.name,
        )
        points = [(p.rate, v) for p in system.points if (v := value(p)) is not None]
        axis.plot(
            [rate for rate, _ in points],
            [v for _, v in points],
            ".",
            color=line.get_color(),
        )
    axis.set_xlabel("requests/s")


def _memory(axis: Any, findings: Findings) -> None:
    """At the reference rate, which all systems were asked at."""
    for system in findings.systems:
        point = next(iter(system.at(findings.reference)), None)
        pools = point.samples[0].used if point and point.samples else {}
        for pool in pools:
            assert point
            name = f"{system.name}, {pool}" if len(pools) > 1 else system.name
            seen = [sample for sample in point.samples if pool in sample.used]
            used = [100 * sample.used[pool] for sample in seen]
            axis.plot([sample.at for sample in seen], used, label=name)
    axis.set(
        xlabel=f"s, at {findings.reference or 0:g} requests/s",
        ylabel="KV blocks in use, %",
        ylim=(0, None),
    )
    if axis.lines:
        axis.legend(fontsize=7)


def _shares(axis: Any, systems: Sequence[Measured]) -> None:
    """Of the systems whose shares follow an SLO, from one rate to the next."""
    for system in systems:
        began = 0.0
        times, prefill, decode = list[float](), list[int](), list[int]()
        for point in system.points if _follows(system) else ():
            axis.axvline(began, color="grey", linewidth=0.5)
            axis.text(began, 2, f" {point.rate:g}/s", fontsize=7)
            times += [began + sample.at for sample in point.samples]
            prefill += [sample.shares[0] for sample in point.samples]
            decode += [sample.shares[1] for sample in point.samples]
            began = times[-1] if times else began
        if times:
            axis.step(times, prefill, where="post", label="prefill")
            axis.step(times, decode, "--", where="post", label="decode")
            axis.set_xlabel(f"s, {system.name}")
            axis.legend(fontsize=7)
    axis.set(ylabel="shares, %", ylim=(0, 105))


def _follows(system: Measured) -> bool:
    return any(point.decisions for point in system.points)
