"""How running streams fare while long prompts arrive: semi-PD beside fused serving.

    make bench-gpu-mesh ARGS="--shape llama-3.2-3b --systems semi-split fused-512"

Each system is a mesh of its own on the same weights, and gets the same load over HTTP:
streams that never pause, and among them prompts at random times, no two alike.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM

from bench.client import Client, connected
from bench.load import closed_loop, open_loop
from bench.measures import Outcome, quantile
from bench.workload import Planned, fixed, poisson
from device.mps import NoDaemon, own_daemon
from gpu import SHAPES
from models import SPECIAL, tokenizer_of

READY_SECONDS = 180
STOP_SECONDS = 30
ANSWER_SECONDS = 120
SYSTEMS = ("semi-split", "semi-mps", "semi", "fused-512", "fused-2048")

console = Console(stderr=True, highlight=False)


@dataclass(frozen=True, slots=True)
class Load:
    """What every system gets."""

    num_streams: int
    num_prompt_tokens: int  # of the prompts that arrive
    rate: float  # prompts per second
    seconds: float
    vocab_size: int
    of_streams: tuple[int, int] = (256, 256)  # tokens of prompt and answer
    num_output_tokens: int = 16  # of the prompts that arrive


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one system; times in milliseconds."""

    system: str
    itl_p50: float = 0.0
    itl_p99: float = 0.0
    itl_p99_alone: float = 0.0  # the streams without prompts
    tokens_per_second: float = 0.0  # of the streams
    ttft_p50: float = 0.0  # of the prompts
    ttft_p99: float = 0.0
    num_prompts: int = 0
    error: str = ""


def make_model(shape: str, folder: Path) -> None:
    """Random weights, made on the GPU, as a checkpoint on disk."""
    config = SHAPES[shape]
    config.bos_token_id, config.eos_token_id = SPECIAL["<s>"], SPECIAL["</s>"]
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer_of(config.vocab_size).save_pretrained(folder)


def options_of(system: str) -> list[str]:
    match system.split("-"):
        case ["semi", "split"]:
            return ["--shares", "50", "--max-num-batched-tokens", "2048"]
        case ["semi", *_]:
            return ["--max-num-batched-tokens", "2048"]
        case ["fused", budget]:
            return ["--paradigm", "fused", "--max-num-batched-tokens", budget]
    raise ValueError(f"no system {system}")


def environment_of(system: str) -> AbstractContextManager[dict[str, str] | None]:
    """A daemon around a mesh that is not split; a split mesh starts its own."""
    return own_daemon() if system == "semi-mps" else nullcontext()


@contextmanager
def running(system: str, options: list[str]) -> Iterator[str]:
    """The URL of a mesh that runs while inside."""
    with tempfile.TemporaryDirectory() as run_dir, environment_of(system) as env:
        command = [sys.executable, "-m", "tandem", "up", "--port", "0"]
        command += ["--run-dir", run_dir, *options, *options_of(system)]
        with subprocess.Popen(
            command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as mesh:
            try:
                yield _url(mesh)
            finally:
                mesh.terminate()
                mesh.communicate(timeout=STOP_SECONDS)


def _url(mesh: "subprocess.Popen[str]") -> str:
    assert mesh.stdout
    line = mesh.stdout.readline()
    if not line.startswith("ready "):
        assert mesh.stderr
        raise RuntimeError(f"it did not start: {mesh.stderr.read()[-500:]}")
    return line.split()[1]


async def measured(system: str, url: str, load: Load) -> Figures:
    async with connected(url, "", ANSWER_SECONDS) as client:
        await drive(client, load, "warm", seconds=1.5, rate=max(load.rate, 1.0))
        alone, _ = await drive(client, load, "alone", seconds=load.seconds / 3)
        streams, prompts = await drive(client, load, "both", load.seconds, load.rate)
    for outcome in (*streams, *prompts):
        if outcome.error:
            raise RuntimeError(outcome.error)
    itls, ttfts = _itls(streams), sorted(1000 * each.ttft for each in prompts)
    first = min(each.sent for each in streams)
    last = max(each.times[-1] for each in streams)
    num_tokens = sum(each.num_output_tokens for each in streams)
    return Figures(
        system,
        itl_p50=quantile(itls, 0.5),
        itl_p99=quantile(itls, 0.99),
        itl_p99_alone=quantile(_itls(alone), 0.99),
        tokens_per_second=num_tokens / (last - first),
        ttft_p50=quantile(ttfts, 0.5),
        ttft_p99=quantile(ttfts, 0.99),
        num_prompts=len(prompts),
    )


async def drive(
    client: Client, load: Load, seed: str, seconds: float, rate: float = 0.0
) -> tuple[list[Outcome], list[Outcome]]:
    """What became of the streams, and of the prompts that arrived among them."""
    ended = time.monotonic() + seconds
    count = int(rate * seconds)
    planned = fixed(
        count,
        load.num_prompt_tokens,
        load.num_output_tokens,
        load.vocab_size,
        f"{seed} prompts",
    )
    streams, prompts = await asyncio.gather(
        closed_loop(_until(ended, load, seed), client.ask, load.num_streams),
        open_loop(poisson(planned, rate or 1.0, seed), client.ask),
    )
    return streams, prompts


def _until(ended: float, load: Load, seed: str) -> Iterator[Planned]:
    """Requests of the streams, for as long as the time lasts."""
    many = 100 * load.num_streams
    for planned in fixed(many, *load.of_streams, load.vocab_size, f"{seed} streams"):
        if time.monotonic() > ended:
            return
        yield planned


def _itls(outcomes: list[Outcome]) -> list[float]:
    return sorted(1000 * itl for each in outcomes for itl in each.itls)


def figures_of(system: str, options: list[str], load: Load) -> Figures:
    """A system that fails says why, and the others go on."""
    console.print(f"{system} starts", markup=False)
    try:
        with running(system, options) as url:
            console.print(f"{system} runs", markup=False)
            return asyncio.run(measured(system, url, load))
    except (RuntimeError, OSError, NoDaemon, subprocess.SubprocessError) as error:
        return Figures(system, error=" ".join(str(error).split()))


def show(all_figures: list[Figures], title: str) -> None:
    names = "ITL p50", "p99", "alone p99", "tokens/s", "TTFT p50", "p99", "prompts"
    table = Table("system", *names)
    table.title = title
    for each in all_figures:
        if each.error:
            table.add_row(each.system, each.error[:200])
            continue
        values: list[Any] = list(asdict(each).values())[1:7]
        cells = (f"{value:.1f}" for value in values)
        table.add_row(each.system, *cells, str(each.num_prompts))
    Console().print(table)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="llama-3.2-3b")
    parser.add_argument("--model", type=Path, help="instead of random weights")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=SYSTEMS)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--prompt-tokens", type=int, default=4096)
    parser.add_argument("--rate", type=float, default=4.0)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--vocab-size", type=int, default=100_000)
    parser.add_argument("--options", default="", help="more of `tandem up`")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def main() -> None:
    given = parsed()
    load = Load(
        given.streams, given.prompt_tokens, given.rate, given.seconds, given.vocab_size
    )
    with tempfile.TemporaryDirectory() as folder:
        model = given.model or Path(folder)
        if not given.model:
            make_model(given.shape, model)
        options = ["--model", str(model), "--device", given.device]
        options += ["--dtype", given.dtype, "--max-num-seqs", str(2 * given.streams)]
        options += given.options.split()
        all_figures = [figures_of(each, options, load) for each in given.systems]
    if given.json:
        print(json.dumps([asdict(each) for each in all_figures], indent=2))
    else:
        show(all_figures, f"{given.shape}, {given.streams} streams, {given.rate}/s")


if __name__ == "__main__":
    main()
