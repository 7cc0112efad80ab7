"""Tandem and its peers on this machine: same model, same client, same prompts, in turn.

Each peer is a script in bench/peers that can `install` and `serve`; what it needs lies in
a folder of its own. One without a server can `measure` itself, in process: a ceiling. The
floor is one too: reading once what a token needs.

A machine is quicker at one minute than at another. So all servers are up at once, and asked
in rounds, one after the other; who is not asked takes 2 % of a core. What compares
are neighbours: a ratio is the median of the rounds' ratios.

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
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import date
from itertools import chain, count, product
from pathlib import Path
from statistics import median
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
LOAD_SECONDS = 3600  # for one load of one round
MAX_MODEL_LEN = 2048
OURS = {"tandem": "semi", "tandem-fused": "fused"}  # by paradigm
FLOOR = "floor"  # of this machine, for weights as they are
# Without a server.
IN_PROCESS = {
    "openvino": "a ceiling; computes in bfloat16 if the processor has it, or else float32",
    FLOOR: "reads once the bytes of a token, or multiplies as often as a prompt must",
}

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
    port: int
    asking: Sequence[str] = ()  # options of `tandem bench`
    loads: Sequence[Load] = LOADS  # that it can tell a figure of


def servers(names: Sequence[str], homes: Path, model: Path) -> list[Server]:
    ports = free_ports(len(names))
    return [
        _server(name, homes, model, port)
        for name, port in zip(names, ports, strict=True)
    ]


def _server(name: str, homes: Path, model: Path, port: int) -> Server:
    if name in OURS:
        return _ours(name, homes, model, port)
    if name == FLOOR:
        argv = [sys.executable, str(HERE / "floors.py"), str(model)]
        alone = [load for load in LOADS if load.num_clients == 1]
        return Server(name, argv, {}, port, loads=alone)
    return _peer(name, homes / name, model, port)


def _ours(name: str, homes: Path, model: Path, port: int) -> Server:
    argv = [sys.executable, "-m", "tandem", "up", "--model", str(model)]
    argv += ["--paradigm", OURS[name]]
    argv += ["--port", str(port), "--dtype", "bfloat16"]
    argv += ["--max-model-len", str(MAX_MODEL_LEN), "--kv-blocks", "4096"]
    return Server(name, [*argv, "--run-dir", str(homes / name)], {}, port)


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
    argv = [str(HERE / "peers" / name), task]
    return Server(name, argv, env, port, asking)


def install(server: Server) -> None:
    if server.name not in (*OURS, FLOOR):
        script = server.argv[0]
        subprocess.run([script, "install"], env=os.environ | server.env, check=True)


@contextmanager
def running(server: Server, log: Path) -> Iterator[str]:
    """The server's address, as long as the block lasts."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            server.argv,
            env=os.environ | server.env,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{server.port}"
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
def measuring(server: Server, log: Path) -> Iterator[list[str]]:
    """The command that measures a load, as long as the block lasts."""
    if server.name in IN_PROCESS:
        yield list(server.argv)
    else:
        with running(server, log) as url:
            argv = [sys.executable, "-m", "tandem", "bench", "--url", url, "--json"]
            yield [*argv, *server.asking]


def measured(server: Server, argv: Sequence[str], load: Load, seed: int) -> float:
    """The load's figure; each seed asks other prompts."""
    argv = [*argv, *load.options(), "--repeats", "1", "--seed", str(seed)]
    env = os.environ | server.env
    with console.status(f"{server.name}: {load.title}"):
        output = subprocess.check_output(argv, env=env, timeout=LOAD_SECONDS)
    report = json.loads(output)
    failed = sum(run["num_failed"] for run in report["runs"])
    if failed:
        raise RuntimeError(f"{failed} requests failed: {report['runs'][0]['errors']}")
    return float(report["figures"][load.figure]["median"])


Figures = dict[str, dict[str, list[float]]]  # server, load, one of each round


def rounds(
    asked: Sequence[Server],
    loads: Sequence[Load],
    num_rounds: int,
    homes: Path,
    figures: Figures,
) -> Iterator[None]:
    """Add a figure of each server for each load in each round, the servers in turn.

    Who fails is told of, and takes no part any more.
    """
    with ExitStack() as stack:
        argvs: dict[str, list[str]] = {}
        for server in asked:
            figures[server.name] = {load.title: [] for load in LOADS}
            with _telling(server):
                install(server)
                log = homes / f"{server.name}.log"
                argvs[server.name] = stack.enter_context(measuring(server, log))
        for seed, load, server in product(range(num_rounds), loads, asked):
            if server.name not in argvs or load not in server.loads:
                continue
            argv = argvs.pop(server.name)
            with _telling(server):
                found = measured(server, argv, load, seed)
                figures[server.name][load.title].append(found)
                argvs[server.name] = argv
            yield


@contextmanager
def _telling(server: Server) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, subprocess.SubprocessError) as error:
        console.print(f"[red]{server.name}: {error}")


def ratio(load: Load, figures: Figures, ours: str, peer: str) -> str:
    """Ours to the peer's; less than one is faster for times, more for rates."""
    pairs = zip(figures[ours][load.title], figures[peer][load.title], strict=False)
    ratios = [mine / theirs for mine, theirs in pairs]
    return f"{median(ratios):.2f}" if ratios else ""


def as_markdown(figures: Figures, shape: str) -> str:
    titles = [load.title for load in LOADS]
    lines = [
        f"# {shape}, bfloat16, {date.today()}",
        "",
        f"{_processor()}, {os.cpu_count()} cores. `make bench-peers`: medians, and least to",
        "most of the rounds, in which the servers take turns; the client runs on the same cores.",
        "Ratios are medians of the rounds' ratios.",
        "",
        "| server | " + " | ".join(titles) + " |",
        "|---" * (len(titles) + 1) + "|",
    ]
    for name, loads in figures.items():
        cells = [_cell(loads[title]) for title in titles]
        lines.append(f"| {_label(name)} | " + " | ".join(cells) + " |")
    for name in filter(IN_PROCESS.__contains__, figures):
        lines += ["", f"{_label(name)}: {IN_PROCESS[name]}."]
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


def _cell(found: Sequence[float]) -> str:
    if not found:
        return "not measured"
    return f"{median(found):.1f} ({min(found):.1f} to {max(found):.1f})"


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = (line.partition(": ")[2] for line in lines if line.startswith("model name"))
    return next(names, "unknown processor")


def as_table(figures: Figures) -> Table:
    table = Table("server", *(load.title for load in LOADS))
    for name, loads in figures.items():
        table.add_row(_label(name), *(_cell(loads[load.title]) for load in LOADS))
    return table


def free_ports(number: int) -> list[int]:
    """All different."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(number)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def unwritten(path: Path) -> Path:
    """This path, or a numbered one if it has results already."""
    names = (path.with_stem(f"{path.stem}-{number}") for number in count(2))
    return next(each for each in chain([path], names) if not each.exists())


def main() -> None:
    peers = sorted(path.name for path in (HERE / "peers").iterdir())
    known = [*OURS, *peers, FLOOR]
    parser = argparse.ArgumentParser(description="Compare servers on this machine.")
    parser.add_argument("--only", nargs="+", choices=known, default=known)
    names = [load.name for load in LOADS]
    parser.add_argument("--loads", nargs="+", choices=names, default=names)
    parser.add_argument("--shape", choices=SHAPES, default="llama-120m")
    parser.add_argument("--homes", type=Path, default=ROOT / ".peers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    # Told to end it stops all servers, also where a script has Ctrl-C ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    homes = options.homes.resolve()
    loads = [load for load in LOADS if load.name in options.loads]
    model = homes / "models" / options.shape
    if not model.exists():
        make(options.shape, model)
    path = unwritten(RESULTS / f"{date.today()}-peers-{options.shape}.md")
    figures: Figures = {}
    asked = servers(options.only, homes, model)
    for _ in rounds(asked, loads, options.rounds, homes, figures):
        # Each time: who interrupts hours of this keeps what there is.
        path.write_text(as_markdown(figures, options.shape))
    path.write_text(
        as_markdown(figures, options.shape)
    )  # where nobody could be asked, too
    if options.json:
        print(json.dumps(figures, indent=2))
    else:
        Console().print(as_table(figures))
    console.print(f"written to {path}")


if __name__ == "__main__":
    main()
