"""What was found about numbers of containers: a table for people, and a picture."""

from collections.abc import Callable
from math import nan
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table

from bench.experiments.counts import Counts
from bench.experiments.pauses import Pauses
from bench.experiments.scale import Point, Scaled
from bench.measures import Distribution

MISSING = "-"
PANELS: dict[str, Callable[[Point], float | None]] = {
    "tokens\nper s": lambda point: point.run.output_tokens_per_second,
    "TTFT\np90": lambda point: _p90(point.run.ttft_ms),
    "TPOT\np90": lambda point: _p90(point.run.tpot_ms),
    "E2E\np90": lambda point: _p90(point.run.e2e_ms),
}
PAUSES = "longest\npause", "median\npause"


def as_tables(scaled: Scaled) -> Group:
    return Group(_points(scaled), _moves(scaled))


def _points(scaled: Scaled) -> Table:
    table = _table(
        f"{scaled.workload}; times in ms",
        *("prefill", "decode", *PANELS, *PAUSES, "not\nwhole"),
    )
    for point in scaled.points:
        table.add_row(
            str(point.counts.prefill),
            str(point.counts.decode),
            *(_shown(figure(point)) for figure in PANELS.values()),
            *_in_words(point.pauses),
            str(point.run.num_failed + point.num_incomplete),
        )
    return table


def _moves(scaled: Scaled) -> Table:
    table = _table(
        "containers that come or go in the middle of it",
        *("prefill", "decode", "ready\nafter s", "streams", *PAUSES),
        *("steps\nmissed", "not\nwhole"),
    )
    for move in scaled.moves:
        pauses = move.pauses
        table.add_row(
            _step(move.before.prefill, move.after.prefill),
            _step(move.before.decode, move.after.decode),
            f"{move.seconds:.1f}",
            str(pauses.num_streams if pauses else 0),
            *_in_words(pauses),
            str(pauses.steps_missed_most) if pauses else MISSING,
            str(move.run.num_failed + move.num_incomplete),
        )
    return table


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in headings:
        table.add_column(heading, justify="right")
    return table


def _p90(times: Distribution | None) -> float | None:
    return times.p90 if times else None


def _in_words(pauses: Pauses | None) -> list[str]:
    if pauses is None:
        return [MISSING, MISSING]
    return [f"{pauses.ms_most:.0f}", f"{pauses.ms_median:.0f}"]


def _shown(value: float | None) -> str:
    return MISSING if value is None else f"{value:.0f}"


def _step(before: int, after: int) -> str:
    return str(before) if before == after else f"{before} to {after}"


def draw(scaled: Scaled, path: Path) -> None:
    """Each measure by the number of decode workers, a line for each number of prefill
    workers; below, what changes cost. Needs matplotlib.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure = pyplot.figure(figsize=(13, 7))
    panels = figure.add_gridspec(2, len(PANELS))
    for column, (name, value) in enumerate(PANELS.items()):
        axes = figure.add_subplot(panels[0, column])
        for prefill in sorted({each.counts.prefill for each in scaled.points}):
            line = [each for each in scaled.points if each.counts.prefill == prefill]
            line.sort(key=lambda each: each.counts.decode)
            axes.plot(
                [each.counts.decode for each in line],
                [nan if (seen := value(each)) is None else seen for each in line],
                "o-",
                label=f"{prefill} prefill",
            )
        axes.set(title=" ".join(name.split()), xlabel="decode workers", ylim=(0, None))
        axes.set_xticks(sorted({each.counts.decode for each in scaled.points}))
        if column == 0:
            axes.legend()
    _draw_pauses(figure.add_subplot(panels[1, :]), scaled)
    figure.suptitle(f"{scaled.workload}; times in ms")
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def _draw_pauses(axes: Any, scaled: Scaled) -> None:
    """In the order of the walk: how long streams stood still at and between its points."""
    labels = []
    for number, point in enumerate(scaled.points):
        labels.append(_label(point.counts))
        _mark(axes, 2 * number, point.pauses, "tab:gray", "" if number else "no change")
    for number, move in enumerate(scaled.moves):
        labels.insert(2 * number + 1, f"to {_label(move.after)}")
        name = "" if number else "containers come or go"
        _mark(axes, 2 * number + 1, move.pauses, "tab:orange", name)
    axes.set_xticks(range(len(labels)), labels)
    axes.set(
        title="longest pause of a stream (dot) and its median over streams (line)",
        xlabel="prefill + decode workers",
        ylabel="ms",
        ylim=(0, None),
    )
    axes.legend()


def _mark(axes: Any, at: int, pauses: Pauses | None, color: str, name: str) -> None:
    if pauses:
        axes.plot([at], [pauses.ms_most], "o", color=color, label=name or None)
        axes.plot([at], [pauses.ms_median], "_", color=color, markersize=14)


def _label(counts: Counts) -> str:
    return f"{counts.prefill}+{counts.decode}"
