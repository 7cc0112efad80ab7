"""Tandem and its peers on this machine: same model, same client, same prompts, in turn.

Each peer is a script in bench/peers that can `install` and `serve`; what it needs lies in
a folder of its own. One without a server can `measure` itself, in process: a ceiling.
Figures of different days or machines do not compare: the ratios of one run do.

    make bench-peers ARGS="--only tandem vllm --shape qwen2.5-0.5b"
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from itertools import chain, count
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from rich.console import Console
from rich.table import Table

from models import SHAPES, make

HERE = Path(__file__).parent
ROOT = HERE.parent
RESULTS = HERE / "results"
START_SECONDS = 900  # the first start of some peers compiles for minutes
STOP_SECONDS = 30
LOAD_SECONDS = 3600  # for all repeats of one load
MAX_MODEL_LEN = 2048
OURS = {"tandem": "semi", "tandem-fused": "fused"}  # by paradigm
# Engines without a server, and in what they compute.
IN_PROCESS = {"openvino": "bfloat16 if the processor has it, or else float32"}

console = Console(stderr=True)


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked, and which figure of `tandem bench` counts."""

    name: str
    title: str
    figure: str
    num_input: int
    num_output: int
    num_clients: int
    num_requests: int

    def options(self) -> list[str]:
        return [
            *("--input", str(self.num_input), "--output", str(self.num_output)),
            *("--concurrency", str(self.num_clients)),
            *("--requests", str(self.num_requests)),
            *("--warm-up", str(max(2, self.num_clients))),
        ]


RATE = "output tokens/s"
LOADS = (
    Load("ttft", "TTFT of 512 tokens, ms", "TTFT p50, ms", 512, 2, 1, 16),
    Load("tpot", "TPOT of one stream, ms", "TPOT p50, ms", 64, 128, 1, 4),
    Load("8-at-once", "256/64, 8 at once, tokens/s", RATE, 256, 64, 8, 32),
    Load("16-at-once", "1024/128, 16 at once, tokens/s", RATE, 1024, 128, 16, 32),
)


@dataclass(frozen=True, slots=True)
class Server:
    """How to run one of the servers, or an engine alone, and how to ask it."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    asking: Sequence[str] = ()  # options of `tandem bench`


def servers(names: Sequence[str], homes: Path, model: Path, port: int) -> list[Server]:
    return [
        _ours(name, homes, model, port)
        if name in OURS
        else _peer(name, homes / name, model, port)
        for name in names
    ]


def _ours(name: str, homes: Path, model: Path, port: int) -> Server:
    argv = [sys.executable, "-m", "tandem", "up", "--model", str(model)]
    argv += ["--paradigm", OURS[name]]
    argv += ["--port", str(port), "--dtype", "bfloat16"]
    argv += ["--max-model-len", str(MAX_MODEL_LEN), "--kv-blocks", "4096"]
    return Server(name, [*argv, "--run-dir", str(homes / name)], {})


def _peer(name: str, home: Path, model: Path, port: int) -> Server:
    """The same for all: what differs is in its script."""
    home.mkdir(parents=True, exist_ok=True)
    env = {
        "PEER_HOME": str(home),
        "MODEL": str(model),
        "PORT": str(port),
        "MAX_MODEL_LEN": str(MAX_MODEL_LEN),
        "TOKENIZER": str(ROOT / "models" / "demo"),
    }
    asking = ["--model", str(model), "--plain"] if name == "transformers-serve" else []
    task = "measure" if name in IN_PROCESS else "serve"
    return Server(name, [str(HERE / "peers" / name), task], env, asking)


def install(server: Server) -> None:
    if server.name not in OURS:
        script = server.argv[0]
        subprocess.run([script, "install"], env=os.environ | server.env, check=True)


@contextmanager
def running(server: Server, port: int, log: Path) -> Iterator[str]:
    """The server's address, as long as the block lasts."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            server.argv,
            env=os.environ | server.env,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        with console.status(f"starting {server.name}, log in {log}"):
            _wait(url, process)
        yield url
    finally:
        _stop(process)


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"it ended with exit code {process.returncode}")
        try:
            with urlopen(f"{url}/health", timeout=5):
                return
        except (URLError, OSError):
            time.sleep(0.5)
    raise RuntimeError(f"not healthy after {START_SECONDS} s")


def _stop(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(STOP_SECONDS)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


@contextmanager
def measuring(server: Server, port: int, log: Path) -> Iterator[list[str]]:
    """The command that measures a load, as long as the block lasts."""
    if server.name in IN_PROCESS:
        yield list(server.argv)
    else:
        with running(server, port, log) as url:
            argv = [sys.executable, "-m", "tandem", "bench", "--url", url, "--json"]
            yield [*argv, *server.asking]


def measured(
    server: Server, argv: Sequence[str], load: Load, repeats: int
) -> dict[str, float]:
    """Median, least and most of the load's figure."""
    argv = [*argv, *load.options(), "--repeats", str(repeats)]
    env = os.environ | server.env
    with console.status(f"{server.name}: {load.title}"):
        output = subprocess.check_output(argv, env=env, timeout=LOAD_SECONDS)
    report = json.loads(output)
    failed = sum(run["num_failed"] for run in report["runs"])
    if failed:
        raise RuntimeError(f"{failed} requests failed: {report['runs'][0]['errors']}")
    return dict(report["figures"][load.figure])


Figures = dict[str, dict[str, dict[str, float]]]  # server, load, spread


def measurements(
    server: Server,
    loads: Sequence[Load],
    repeats: int,
    place: tuple[int, Path],
    figures: Figures,
) -> Iterator[None]:
    """Add a server's figures, one after the other. What fails is told, and ends it.

    The place is (port, log).
    """
    of_server = figures.setdefault(server.name, {})
    try:
        install(server)
        with measuring(server, *place) as argv:
            for load in loads:
                of_server[load.title] = measured(server, argv, load, repeats)
                yield
    except (RuntimeError, subprocess.SubprocessError) as error:
        console.print(f"[red]{server.name}: {error}")


def ratio(load: Load, figures: Figures, ours: str, peer: str) -> str:
    """Ours to the peer's; less than one is faster for times, more for rates."""
    try:
        mine = figures[ours][load.title]["median"]
        theirs = figures[peer][load.title]["median"]
    except KeyError:
        return ""
    return f"{mine / theirs:.2f}"


def as_markdown(figures: Figures, shape: str) -> str:
    titles = [load.title for load in LOADS]
    lines = [
        f"# {shape}, bfloat16, {date.today()}",
        "",
        f"{_processor()}, {os.cpu_count()} cores. `make bench-peers`: medians, and least to",
        "most of the repeats; the client runs on the same cores.",
        "",
        "| server | " + " | ".join(titles) + " |",
        "|---" * (len(titles) + 1) + "|",
    ]
    for name, loads in figures.items():
        cells = [_cell(loads.get(title)) for title in titles]
        lines.append(f"| {_label(name)} | " + " | ".join(cells) + " |")
    for name in filter(IN_PROCESS.__contains__, figures):
        lines += ["", f"{_label(name)}: a ceiling; computes in {IN_PROCESS[name]}."]
    for ours in filter(OURS.__contains__, figures):
        lines += ["", f"{ours}'s figure by the peer's:", ""]
        lines += ["| peer | " + " | ".join(titles) + " |"]
        lines += ["|---" * (len(titles) + 1) + "|"]
        for name in figures:
            if name not in OURS:
                cells = [ratio(load, figures, ours, name) for load in LOADS]
                lines.append(f"| {_label(name)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _label(name: str) -> str:
    return f"{name} (in process, no HTTP)" if name in IN_PROCESS else name


def _cell(spread: dict[str, float] | None) -> str:
    if spread is None:
        return "not measured"
    return f"{spread['median']:.1f} ({spread['least']:.1f} to {spread['most']:.1f})"


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = (line.partition(": ")[2] for line in lines if line.startswith("model name"))
    return next(names, "unknown processor")


def as_table(figures: Figures) -> Table:
    table = Table("server", *(load.title for load in LOADS))
    for name, loads in figures.items():
        table.add_row(_label(name), *(_cell(loads.get(load.title)) for load in LOADS))
    return table


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def unwritten(path: Path) -> Path:
    """This path, or a numbered one if it has results already."""
    names = (path.with_stem(f"{path.stem}-{number}") for number in count(2))
    return next(each for each in chain([path], names) if not each.exists())


def main() -> None:
    known = [*OURS, *sorted(path.name for path in (HERE / "peers").iterdir())]
    parser = argparse.ArgumentParser(description="Compare servers on this machine.")
    parser.add_argument("--only", nargs="+", choices=known, default=known)
    names = [load.name for load in LOADS]
    parser.add_argument("--loads", nargs="+", choices=names, default=names)
    parser.add_argument("--shape", choices=SHAPES, default="llama-120m")
    parser.add_argument("--homes", type=Path, default=ROOT / ".peers")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    homes = options.homes.resolve()
    loads = [load for load in LOADS if load.name in options.loads]
    model = homes / "models" / options.shape
    if not model.exists():
        make(options.shape, model)
    port = free_port()
    path = unwritten(RESULTS / f"{date.today()}-peers-{options.shape}.md")
    figures: Figures = {}
    for server in servers(options.only, homes, model, port):
        place = port, homes / f"{server.name}.log"
        for _ in measurements(server, loads, options.repeats, place, figures):
            # Each time: who interrupts hours of this keeps what there is.
            path.write_text(as_markdown(figures, options.shape))
        path.write_text(as_markdown(figures, options.shape))  # what failed, too
    if options.json:
        print(json.dumps(figures, indent=2))
    else:
        Console().print(as_table(figures))
    console.print(f"written to {path}")


if __name__ == "__main__":
    main()
