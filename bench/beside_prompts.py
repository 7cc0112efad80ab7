"""Running streams while long prompts arrive, simulated: semi at some splits beside fused.

    make bench-beside-prompts ARGS="--model llama-3-8b --devices h200"

The load is that of bench/gpu_mesh.py, which asks it of real meshes; what is simulated is in
docs/experiments.md. All times are milliseconds.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench.measures import quantile
from bench.mixed import Mix, Seen, add_options, mix_of
from bench.simulation.control import Shares
from bench.simulation.costs import Costs
from bench.simulation.design import DECODE, Design
from bench.simulation.devices import device_of
from bench.simulation.pool import Pool, open_loop
from bench.simulation.shapes import shape_of
from bench.simulation.worker import Rules

CHUNK = 512  # tokens of a fused step
WHOLE = 4096  # of a step that has prompts only
SPLITS = (50, 60, 70)  # percent, of prefill; decode has the rest


@dataclass(frozen=True, slots=True)
class Row:
    """Of one system."""

    device: str
    system: str
    itl_p50: float
    itl_p99: float
    itl_p99_alone: float  # of the streams without prompts
    tokens_per_second: float  # of the streams
    ttft_p50: float  # of the prompts
    ttft_p99: float

    @property
    def times_alone(self) -> float:
        return self.itl_p99 / self.itl_p99_alone


def systems(costs: Costs) -> dict[str, Design]:
    prompts = Rules(max_num_batched_tokens=WHOLE, max_num_seqs=8)
    split = {
        f"semi {percent}/{100 - percent}": Design(
            "semi", costs, prefill=prompts, shares=Shares(percent, 100 - percent)
        )
        for percent in SPLITS
    }
    return {f"fused {CHUNK}": Design("fused", costs, decode=DECODE), **split}


def seen(design: Design, mix: Mix, *, with_prompts: bool = True) -> Seen:
    """What becomes of a load, by the clock of its first request."""
    prompts = mix.prompts() if with_prompts else []
    shifted = [replace(each, at=each.at + mix.settle_seconds) for each in prompts]
    outcomes = open_loop([Pool(design)], [*mix.streams(), *shifted])
    arrived = {each.at for each in shifted}
    return Seen(
        mix.settle_seconds,
        mix.seconds,
        streams=[each for each in outcomes if each.sent not in arrived],
        prompts=[each for each in outcomes if each.sent in arrived],
    )


def row(device: str, system: str, design: Design, mix: Mix) -> Row:
    both, alone = seen(design, mix), seen(design, mix, with_prompts=False)
    itls, itls_alone = (sorted(1000 * itl for itl in s.itls) for s in (both, alone))
    ttfts = sorted(1000 * each.ttft for each in both.prompts)
    return Row(
        device,
        system,
        itl_p50=quantile(itls, 0.5),
        itl_p99=quantile(itls, 0.99),
        itl_p99_alone=quantile(itls_alone, 0.99),
        tokens_per_second=both.tokens_per_second,
        ttft_p50=quantile(ttfts, 0.5),
        ttft_p99=quantile(ttfts, 0.99),
    )


def as_table(rows: Sequence[Row], title: str) -> Table:
    names = "ITL P50", "P99", "P99 alone", "by alone", "tokens/s", "TTFT P50", "P99"
    table = Table("device", "system", *names, title=title)
    for each in rows:
        device, system, p50, p99, alone, *rest = asdict(each).values()
        times = [f"{value:.1f}" for value in (p50, p99, alone)]
        cells = [*times, f"{each.times_alone:.2f}", *(f"{value:.0f}" for value in rest)]
        table.add_row(device, system, *cells)
    return table


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="llama-3-8b", help="name or config.json")
    parser.add_argument("--devices", nargs="+", default=["h200", "a100-80g"])
    add_options(parser)
    parser.set_defaults(stream_rate=6.0, rate=2.0, seconds=60.0)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def main() -> None:
    given = parsed()
    mix = mix_of(given)
    if not mix.prompts():
        raise SystemExit("no prompt arrives in that time: a higher --rate?")
    shape = shape_of(given.model)
    pairs = [
        (name, system, design)
        for name in given.devices
        for system, design in systems(Costs(shape, device_of(name))).items()
    ]
    rows = [row(*each, mix) for each in track(pairs, "simulating", transient=True)]
    if given.json:
        print(json.dumps([asdict(each) for each in rows], indent=2))
        return
    title = f"{given.model}: {given.stream_rate:g} streams/s of {given.stream_tokens}, "
    title += f"{given.rate:g} prompts/s of {given.prompt_tokens}"
    Console().print(as_table(rows, title))


if __name__ == "__main__":
    main()
