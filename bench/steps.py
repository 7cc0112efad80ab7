"""What one step of the engine costs, without the mesh: decode of 1 to 32, and prompts.

    make bench-engine ARGS="--shape qwen2.5-0.5b --threads 2"

With the floor next to it: the time that reading the weights once takes at the rate at
which this machine reads memory, or that the prompt's products take at its matrix rate.
"""

# ruff: noqa: E402

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from math import prod
from pathlib import Path
from statistics import median

from engine.openmp import share_pool

share_pool()  # as in a worker: before torch is loaded

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from safetensors import safe_open

from engine.checkpoint import Checkpoint
from engine.emitter import multiplies_pairs
from engine.interface import Chunk
from engine.memory import MappedMemory
from engine.transformer import TransformerEngine
from models import SHAPES, make
from protocol.memory import Quantization
from protocol.sampling import SamplingParams

BLOCK_SIZE = 16
DECODE = (1, 2, 4, 8, 16, 32)  # sequences
PREFILL = (128, 512)  # tokens
MAX_PRIVATE_BYTES = 1 << 30  # as a worker's
CONTEXT = 256  # tokens before a decode step
NUM_BLOCKS = max(DECODE) * (CONTEXT + max(PREFILL)) // BLOCK_SIZE
PARAMS = SamplingParams(temperature=0.0, max_tokens=1)


def built(
    path: Path, threads: int, quantization: Quantization
) -> tuple[TransformerEngine, Checkpoint]:
    """An engine over memory of our own, and what it was built of."""
    checkpoint = Checkpoint.read(
        path, "bfloat16", BLOCK_SIZE, quantization=quantization
    )
    weights = memoryview(bytearray(checkpoint.weights_bytes))
    checkpoint.copy_into(weights)
    geometry = checkpoint.geometry
    blocks = memoryview(bytearray(NUM_BLOCKS * geometry.block_bytes))
    memory = MappedMemory(weights, checkpoint.tensors, blocks, geometry)
    engine = TransformerEngine.build(path, memory, threads, MAX_PRIVATE_BYTES)
    engine.warm_up()
    return engine, checkpoint


def chunk(number: int, num_tokens: int, num_computed: int) -> Chunk:
    """Of a sequence with blocks of its own; its last token is sampled."""
    num_blocks = (CONTEXT + max(PREFILL)) // BLOCK_SIZE
    table = list(range(number * num_blocks, (number + 1) * num_blocks))
    return Chunk(list(range(10, 10 + num_tokens)), num_computed, table, PARAMS, 0)


def seconds(act: Callable[[], object], repeats: int) -> float:
    """Median; the first ones are not counted."""
    times = []
    for _ in range(repeats + 3):
        started = time.perf_counter()
        act()
        times.append(time.perf_counter() - started)
    return median(times[3:])


def of_layers(path: Path) -> int:
    """Weights that each token of a prompt meets: not those of embeddings and logits."""
    with safe_open(path, "pt") as file:
        names = [name for name in file.keys() if ".layers." in name]  # noqa: SIM118
        return sum(prod(file.get_slice(name).get_shape()) for name in names)


def read_bytes_per_second() -> float:
    """How fast all threads read memory that is in no cache."""
    data = torch.ones(1 << 27)
    return float(data.nbytes / seconds(data.sum, 5))


def multiplied_per_second() -> float:
    """Floating-point operations of matrix products, in what the processor multiplies."""
    # torch takes bfloat16 one by one where the processor knows none.
    dtype = torch.bfloat16 if multiplies_pairs() else torch.float32
    left, right = (torch.randn(n, 2048).to(dtype) for n in (512, 2048))
    return float(2 * 512 * 2048 * 2048 / seconds(lambda: left @ right.T, 20))


def main() -> None:
    parser = argparse.ArgumentParser(description="Time steps of the engine.")
    parser.add_argument("--shape", choices=SHAPES, default="llama-120m")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quantization", choices=("none", "int8"), default="none")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tandem-bench-") as folder:
        make(options.shape, Path(folder))
        quantization = options.quantization
        engine, checkpoint = built(Path(folder), options.threads, quantization)
        num_weights = of_layers(Path(folder) / "model.safetensors")
    read = checkpoint.weights_bytes / read_bytes_per_second()
    per_token = 2 * num_weights / multiplied_per_second()
    steps = [
        (f"decode of {n}", [chunk(i, 1, CONTEXT) for i in range(n)], read)
        for n in DECODE
    ] + [(f"prompt of {n}", [chunk(0, n, 0)], n * per_token) for n in PREFILL]
    figures = {
        name: {
            "ms": 1000 * seconds(lambda c=chunks: engine.step(c), options.repeats),
            "floor_ms": 1000 * floor,
        }
        for name, chunks, floor in track(steps, "steps", transient=True)
    }
    if options.json:
        print(json.dumps(figures, indent=2))
        return
    table = Table("step", "ms", "floor, ms", "ratio")
    weights = "bfloat16" if options.quantization == "none" else options.quantization
    table.title = f"{options.shape}, {weights}, {options.threads} threads"
    for name, figure in figures.items():
        ms, floor = figure["ms"], figure["floor_ms"]
        table.add_row(name, f"{ms:.1f}", f"{floor:.1f}", f"{ms / floor:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
