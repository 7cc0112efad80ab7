"""How running streams fare while long prompts arrive: semi-PD beside fused serving.

    make bench-gpu-mesh ARGS="--shape llama-3.2-3b --systems semi-split fused-512"

Each system is a mesh of its own on the same weights, and gets the same load over HTTP:
streams that begin at even times, and among them prompts at random ones, no two alike. A
system that keeps up has the throughput of the others.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from threading import Timer
from typing import Any

import aiohttp
from rich.console import Console
from rich.table import Table

from bench.measures import quantile
from bench.mixed import Mix, Seen, add_options, drive, mix_of
from device.mps import NoDaemon, own_daemon
from models import SHAPES, make

READY_SECONDS = 180
STOP_SECONDS = 30
WARM_SECONDS = 2.0  # kernels of every kind of step are compiled
MAX_NUM_SEQS = 64
UNDER_MPS = ("semi-split", "semi-mps")
SYSTEMS = ("semi-split", "semi-mps", "semi", "fused-512", "fused-2048")

FAILURES = (
    RuntimeError,
    OSError,
    ValueError,
    LookupError,
    NoDaemon,
    aiohttp.ClientError,
    subprocess.SubprocessError,
)

console = Console(stderr=True, highlight=False)


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one system; times in milliseconds."""

    system: str
    itl_p50: float = 0.0
    itl_p99: float = 0.0
    itl_p99_alone: float = 0.0  # the streams without prompts
    tokens_per_second: float = 0.0  # of the streams
    tokens_per_second_alone: float = 0.0
    ttft_p50: float = 0.0  # of the prompts
    ttft_p99: float = 0.0
    num_prompts: int = 0  # answered
    num_failed: int = 0
    in_force: str = ""  # what the workers say of MPS and of their part of the GPU
    error: str = ""


def options_of(system: str, shares: int) -> list[str]:
    match system.split("-"):
        case ["semi", "split"]:
            return ["--shares", str(shares), "--share-ladder", str(shares)]
        case ["semi", *_]:
            return []
        case ["fused", budget]:
            return ["--paradigm", "fused", "--max-num-batched-tokens", budget]
    raise ValueError(f"no system {system}")


def environment_of(system: str) -> AbstractContextManager[dict[str, str] | None]:
    """A daemon around a mesh that is not split; a split mesh starts its own."""
    return own_daemon() if system == "semi-mps" else nullcontext()


@contextmanager
def running(system: str, options: list[str], shares: int) -> Iterator[tuple[str, str]]:
    """The URL of a mesh that runs while inside, and what is in force there."""
    with tempfile.TemporaryDirectory() as folder, environment_of(system) as env:
        command = [sys.executable, "-m", "tandem", "up", "--port", "0"]
        command += ["--run-dir", folder, "--log-format", "json"]
        command += [*options, *options_of(system, shares)]
        said = Path(folder) / "said"
        with (
            said.open("w") as stderr,
            subprocess.Popen(
                command, env=env, stdout=subprocess.PIPE, stderr=stderr, text=True
            ) as mesh,
        ):
            try:
                url = _url(mesh, said)
                yield url, in_force(system, Path(folder) / "logs")
            finally:
                mesh.terminate()
                try:
                    mesh.communicate(timeout=STOP_SECONDS)
                finally:
                    mesh.kill()  # nothing, if it has ended


def _url(mesh: "subprocess.Popen[str]", said: Path) -> str:
    assert mesh.stdout
    timer = Timer(READY_SECONDS, mesh.terminate)
    timer.start()
    line = mesh.stdout.readline()
    timer.cancel()
    if not line.startswith("ready "):
        raise RuntimeError(f"it did not start: {said.read_text()[-500:]}")
    return line.split()[1]


def in_force(system: str, logs: Path) -> str:
    """RuntimeError where a system would not be what its name says."""
    lines = [
        (path.stem, line)
        for path in sorted(logs.glob("*-0.log"))
        for line in path.read_text().splitlines()
        if '"gpu.shares"' in line
    ]
    parts = []
    for name, line in lines:
        event = json.loads(line)
        sms = "/".join(map(str, event["sizes"].values()))
        parts.append(f"{name}: {event['mode']} {sms}, MPS {event['mps']}")
        is_split = event["mode"] == "green"
        if is_split != (system == "semi-split"):
            raise RuntimeError(f"{parts[-1]}: {event['reason']}")
        if system in UNDER_MPS and event["mps"] != "reachable":
            raise RuntimeError(parts[-1])
    return "; ".join(parts)


async def measured(system: str, url: str, mix: Mix) -> Figures:
    warm_rate = max(mix.rate, 2 / WARM_SECONDS)
    await drive(url, replace(mix, seed="warm", seconds=WARM_SECONDS, rate=warm_rate))
    alone = await drive(
        url, replace(mix, seed="alone", seconds=mix.seconds / 3, rate=0.0)
    )
    both = await drive(url, mix)
    answered = [each for each in both.prompts if each.is_answered]
    if not answered:
        raise RuntimeError(f"no prompt was answered: {both.prompts[:1]}")
    itls, ttfts = _itls(both), sorted(1000 * each.ttft for each in answered)
    return Figures(
        system,
        itl_p50=quantile(itls, 0.5),
        itl_p99=quantile(itls, 0.99),
        itl_p99_alone=quantile(_itls(alone), 0.99),
        tokens_per_second=both.tokens_per_second,
        tokens_per_second_alone=alone.tokens_per_second,
        ttft_p50=quantile(ttfts, 0.5),
        ttft_p99=quantile(ttfts, 0.99),
        num_prompts=len(answered),
        num_failed=len(both.prompts) - len(answered),
    )


def _itls(seen: Seen) -> list[float]:
    """In order, in milliseconds."""
    failed = {each.error for each in seen.streams if each.error}
    if failed or not seen.itls:
        raise RuntimeError(f"no stream went on: {' '.join(failed)}")
    return sorted(1000 * itl for itl in seen.itls)


def figures_of(system: str, options: list[str], shares: int, mix: Mix) -> Figures:
    """A system that fails says why, and the others go on."""
    began = time.monotonic()

    def tell(news: str) -> None:
        passed = time.monotonic() - began
        console.print(f"{system} {news} {passed:.0f} s", markup=False, soft_wrap=True)

    try:
        with running(system, options, shares) as (url, in_force):
            tell(f"is ready after [{in_force}]")
            figures = asyncio.run(measured(system, url, mix))
        figures = replace(figures, in_force=in_force)
    except FAILURES as error:
        figures = Figures(
            system, error=" ".join(f"{type(error).__name__}: {error}".split())
        )
    tell(f"{asdict(figures)}, done after")
    return figures


def show(all_figures: list[Figures], title: str) -> None:
    names = "ITL p50", "p99", "alone p99", "tokens/s", "alone", "TTFT p50", "p99"
    table = Table("system", *names, "prompts", "in force")
    table.title = title
    for each in all_figures:
        if each.error:
            table.add_row(each.system, *(len(names) + 1) * [""], each.error[:200])
            continue
        values: list[Any] = list(asdict(each).values())[1:8]
        cells = (f"{value:.1f}" for value in values)
        answered = f"{each.num_prompts}/{each.num_prompts + each.num_failed}"
        table.add_row(each.system, *cells, answered, each.in_force)
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="llama-3.2-3b")
    parser.add_argument("--model", type=Path, help="made there, if it is not there yet")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=SYSTEMS)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    add_options(parser)
    parser.add_argument(
        "--shares", type=int, default=60, help="of semi-split's prefill"
    )
    parser.add_argument("--options", default="", help="more of `tandem up`")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def main() -> None:
    given = parsed()
    mix = mix_of(given)
    with tempfile.TemporaryDirectory() as folder:
        model = given.model or Path(folder)
        if not (model / "config.json").exists():
            # In a process of its own, whose memory on the GPU ends with it.
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                process.submit(make, given.shape, model, given.device).result()
        options = ["--model", str(model), "--device", given.device]
        options += ["--dtype", given.dtype, "--max-num-seqs", str(MAX_NUM_SEQS)]
        options += given.options.split()
        all_figures = [
            figures_of(each, options, given.shares, mix) for each in given.systems
        ]
    if given.json:
        print(json.dumps([asdict(each) for each in all_figures], indent=2))
    else:
        show(
            all_figures,
            f"{given.shape}, {given.stream_rate} streams/s, {given.rate} prompts/s",
        )


if __name__ == "__main__":
    main()
