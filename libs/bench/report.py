"""What a benchmark found: for programs as JSON, for people as a table and pictures."""

from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import BaseModel
from rich.table import Table

from bench.measures import Distribution, Outcome, Run, Spread

TIMES = {
    "TTFT": "ttft_ms",
    "TPOT": "tpot_ms",
    "ITL": "itl_ms",
    "E2E": "e2e_ms",
}
RATES: dict[str, Callable[[Run], float]] = {
    "output tokens/s": lambda run: run.output_tokens_per_second,
    "requests/s": lambda run: run.requests_per_second,
    "goodput, requests/s": lambda run: run.goodput,
}


class Report(BaseModel, frozen=True):
    """Of all repeats of one workload."""

    url: str
    workload: str
    runs: tuple[Run, ...]

    def figures(self) -> dict[str, Spread]:
        """By name, over the repeats."""
        figures = {
            name: Spread.of([rate(run) for run in self.runs])
            for name, rate in RATES.items()
        }
        for name, field in TIMES.items():
            found: list[Distribution | None]
            found = [getattr(run, field) for run in self.runs]
            seen = [each for each in found if each is not None]
            for part in Distribution.model_fields if seen else ():
                values = [getattr(each, part) for each in seen]
                figures[f"{name} {part}, ms"] = Spread.of(values)
        return figures

    @property
    def num_failed(self) -> int:
        return sum(run.num_failed for run in self.runs)


def as_table(report: Report) -> Table:
    table = Table(
        title=f"{report.url}: {report.workload}, {len(report.runs)} runs",
        title_justify="left",
    )
    table.add_column("")
    for heading in ("median", "least", "most"):
        table.add_column(heading, justify="right")
    for name, spread in report.figures().items():
        table.add_row(
            name, *(f"{v:.1f}" for v in (spread.median, spread.least, spread.most))
        )
    if report.num_failed:
        errors = dict.fromkeys(error for run in report.runs for error in run.errors)
        table.caption = f"{report.num_failed} failed: {'; '.join(errors)}"
        table.caption_style = "red"
    return table


def draw(outcomes: Sequence[Outcome], title: str, path: Path) -> None:
    """Cumulative distributions of TTFT and TPOT, and both over time. Needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    answered = [each for each in outcomes if each.is_answered]
    start = min((each.sent for each in answered), default=0.0)
    figure, axes = pyplot.subplots(2, 2, figsize=(10, 7))
    series = {
        "TTFT": [(e.sent - start, 1000 * e.ttft) for e in answered],
        "TPOT": [
            (e.sent - start, 1000 * e.tpot) for e in answered if e.tpot is not None
        ],
    }
    for (over_time, shares), (name, points) in zip(axes, series.items(), strict=True):
        values = sorted(value for _, value in points)
        over_time.plot([sent for sent, _ in points], [ms for _, ms in points], ".")
        over_time.set(xlabel="sent, s", ylabel=f"{name}, ms", ylim=(0, None))
        shares.plot(values, [(n + 1) / len(values) for n in range(len(values))])
        shares.set(xlabel=f"{name}, ms", ylabel="share of requests", xlim=(0, None))
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
