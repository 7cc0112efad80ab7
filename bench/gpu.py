"""What the engine's steps cost on a GPU, beside the floor that its memory and its matrix
units set; how long weights take to arrive, and memory to be attached.

    make bench-gpu ARGS="--shape llama-3.1-8b --json"

Models have random weights, made on the GPU: speed needs no other.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.table import Table
from transformers import (
    AutoModelForCausalLM,
    PreTrainedConfig,
)

from engine.checkpoint import Checkpoint, lay_out
from engine.configuration import max_position
from engine.cuda_engine import CudaEngine, Limits
from engine.interface import Chunk
from engine.memory import MappedMemory
from engine.partition import Lanes
from engine.skeleton import state
from engine.staging import copy_to_device
from floors import Floors, head_dim_of
from kv.cuda import map_on_device, segment_maker
from kv.frames import framed, send_descriptors
from models import SHAPES
from protocol.memory import KVGeometry, LayerGeometry, ModelFacts
from protocol.sampling import SamplingParams
from protocol.wire import encode

BLOCK_SIZE = 16
DECODE = (1, 8, 32)  # sequences
CONTEXT = 1024  # tokens before a decode step
PREFILL = (2048, 8192)  # tokens
NUM_BLOCKS = (max(DECODE) * (CONTEXT + BLOCK_SIZE) + max(PREFILL)) // BLOCK_SIZE
PARAMS = SamplingParams(temperature=0.0, max_tokens=1)


@dataclass(frozen=True, slots=True)
class Figure:
    """One measurement, in milliseconds unless its name says otherwise."""

    name: str
    value: float
    floor: float | None = None


def seconds(act: Callable[[], object], repeats: int = 20, warm_up: int = 5) -> float:
    """Median of the wall time until the GPU is done."""
    times = []
    for _ in range(repeats + warm_up):
        torch.cuda.synchronize()
        started = time.perf_counter()
        act()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return median(times[warm_up:])


def copied_per_second() -> float:
    """Bytes read and written by a copy within the GPU's memory."""
    source = torch.empty(1 << 32, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * len(source) / seconds(lambda: target.copy_(source))


def multiplied_per_second() -> float:
    """Floating-point operations of a large product of random bfloat16."""
    left, right = (
        torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2)
    )
    return 2 * 8192**3 / seconds(lambda: left @ right)


def checkpoint_of(config: PreTrainedConfig) -> Checkpoint:
    """As if it had been read from disk, its tensors already on the GPU."""
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    tensors = state(model.eval().requires_grad_(False))
    specs, weights_bytes = lay_out(tensors)
    head_dim = head_dim_of(config)
    layer = LayerGeometry(
        num_kv_heads=config.num_key_value_heads,
        k_head_dim=head_dim,
        v_head_dim=head_dim,
    )
    geometry = KVGeometry(
        layers=(layer,) * config.num_hidden_layers,
        dtype="bfloat16",
        block_size=BLOCK_SIZE,
        device="cuda",
    )
    facts = ModelFacts(
        model="random",
        fingerprint="random",
        vocab_size=config.vocab_size,
        max_position=max_position(config),
    )
    return Checkpoint(facts, geometry, specs, weights_bytes, tensors, model, model)


def engine_of(config: PreTrainedConfig, lanes: Lanes) -> tuple[CudaEngine, int]:
    """An engine over segments of our own, and the bytes of its weights."""
    checkpoint = checkpoint_of(config)
    make = segment_maker("vmm")
    sizes = checkpoint.weights_bytes, NUM_BLOCKS * checkpoint.geometry.block_bytes
    segments = [make(name, size) for name, size in zip("wb", sizes, strict=True)]
    weights, blocks = (
        map_on_device(each.handle, _dup(each.descriptors[0]), writable=True)
        for each in segments
    )
    checkpoint.copy_into(weights)
    torch.as_tensor(blocks, device="cuda").zero_()
    memory = MappedMemory(weights, checkpoint.tensors, blocks, checkpoint.geometry)
    num_bytes = checkpoint.weights_bytes
    with tempfile.TemporaryDirectory() as folder:
        config.architectures = [type(checkpoint._loaded).__name__]
        config.save_pretrained(folder)
        del checkpoint
        torch.cuda.empty_cache()
        limits = Limits(max(DECODE), max(PREFILL) + BLOCK_SIZE)
        engine = CudaEngine.build(Path(folder), memory, limits, lanes)
    engine.warm_up()
    return engine, num_bytes


def _dup(descriptor: int) -> int:
    return os.dup(descriptor)  # as one that came over a socket


def chunk(number: int, num_tokens: int, num_computed: int) -> Chunk:
    """Of a sequence with blocks of its own; its last token is sampled."""
    num_blocks = -(-(num_computed + num_tokens) // BLOCK_SIZE)
    first = number * (CONTEXT // BLOCK_SIZE + 1)
    table = list(range(first, first + num_blocks))
    return Chunk(list(range(10, 10 + num_tokens)), num_computed, table, PARAMS, 0)


def steps(
    engine: CudaEngine, num_bytes: int, config: PreTrainedConfig
) -> Iterator[Figure]:
    """Decode beside the time to read the weights and K/V, prompts beside products."""
    copied, multiplied = copied_per_second(), multiplied_per_second()
    yield Figure("copy, TB/s", copied / 1e12)
    yield Figure("matrix product, TFLOP/s", multiplied / 1e12)
    floors = Floors(config, num_bytes)
    for count in DECODE:
        chunks = [chunk(i, 1, CONTEXT - 1) for i in range(count)]
        floor = floors.decode_bytes(count, CONTEXT) / copied
        took = seconds(lambda chunks=chunks: engine.step(chunks), 50)
        yield Figure(f"decode of {count}", 1000 * took, 1000 * floor)
    for length in PREFILL:
        floor = floors.prompt_operations(length) / multiplied
        took = seconds(lambda n=length: engine.step([chunk(0, n, 0)]), 5, 2)
        yield Figure(f"prompt of {length}", 1000 * took, 1000 * floor)


def lanes_of(engine: CudaEngine, lanes: Lanes) -> Iterator[Figure]:
    """What a part of the multiprocessors costs, and a change between part and whole."""
    chunks = [chunk(i, 1, CONTEXT - 1) for i in range(8)]
    engine.share(100, 1)
    whole = seconds(lambda: engine.step(chunks), 50)
    yield Figure("decode of 8, all SMs", 1000 * whole)
    engine.share(1, 1)
    part = seconds(lambda: engine.step(chunks), 50)
    split = lanes.split(0)
    yield Figure(f"decode of 8, {split.decode_sms if split else 0} SMs", 1000 * part)
    numbers = iter(range(1 << 30))

    def switched() -> None:
        engine.share((50, 100)[next(numbers) % 2], 1)
        engine.step(chunks)

    both = seconds(switched, 100)
    yield Figure("a change of lanes", 1000 * (both - (whole + part) / 2))
    engine.share(100, 1)


ATTACHER = """
import socket, sys, time
import torch
from kv.cuda import map_on_device
from kv.frames import receive_descriptors, receive_frame
from protocol.memory import SegmentHandle
from protocol.wire import Decoder
line = socket.socket(fileno=int(sys.argv[1]))
torch.zeros(1, device="cuda")
handle = Decoder(SegmentHandle)(receive_frame(line))
started = time.perf_counter()
mapping = map_on_device(handle, receive_descriptors(line, 1)[0], writable=True)
torch.as_tensor(mapping, device="cuda")[-1].item()
print(time.perf_counter() - started)
"""


def attaching() -> Figure:
    """A fresh process maps most of the GPU's free memory; CUDA is already up in it."""
    free, _ = torch.cuda.mem_get_info()
    size = min(100 << 30, free * 8 // 10)
    ours, theirs = socket.socketpair()
    with closing(segment_maker("vmm")("blocks", size)) as segment, ours, theirs:
        ours.send(framed(encode(segment.handle)))
        send_descriptors(ours, segment.descriptors)
        answer = subprocess.run(
            [sys.executable, "-c", ATTACHER, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    return Figure(f"attach {size >> 30} GiB", 1000 * float(answer.stdout))


def loading() -> Iterator[Figure]:
    """Weights from the host's memory to the GPU's, beside one pinned copy."""
    source = {"w": torch.ones(1 << 31, dtype=torch.bfloat16)}
    target = {"w": torch.empty(1 << 31, dtype=torch.bfloat16, device="cuda")}
    num_bytes = source["w"].nbytes
    pinned = torch.empty(1 << 28, dtype=torch.uint8, pin_memory=True)
    there = torch.empty_like(pinned, device="cuda")
    bus = len(pinned) / seconds(lambda: there.copy_(pinned, non_blocking=True), 10)
    yield Figure("bus, GB/s", bus / 1e9)
    took = seconds(lambda: copy_to_device(source, target), 3, 1)
    yield Figure("weights to the GPU, GB/s", num_bytes / took / 1e9)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time steps of the engine on a GPU.")
    parser.add_argument("--shape", choices=SHAPES, default="llama-3.1-8b")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    config = SHAPES[options.shape]
    lanes = Lanes.open("decode", [50])
    engine, num_bytes = engine_of(config, lanes)
    figures = [
        *steps(engine, num_bytes, config),
        *(lanes_of(engine, lanes) if lanes.mode == "green" else ()),
    ]
    del engine
    torch.cuda.empty_cache()
    figures += [attaching(), *loading()]
    if options.json:
        print(json.dumps([asdict(figure) for figure in figures], indent=2))
        return
    table = Table("", "ms", "floor, ms", "ratio")
    table.title = f"{options.shape}, bfloat16, {torch.cuda.get_device_name()}"
    for figure in figures:
        floor, ratio = "", ""
        if figure.floor:
            floor, ratio = f"{figure.floor:.2f}", f"{figure.value / figure.floor:.2f}"
        table.add_row(figure.name, f"{figure.value:.2f}", floor, ratio)
    Console().print(table)


if __name__ == "__main__":
    main()
