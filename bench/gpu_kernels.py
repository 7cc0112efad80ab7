"""What the Triton kernels do on this GPU, next to what its memory and torch do.

Decode attention as bytes of K and V read per second beside a plain copy's; prompts as
arithmetic per second beside torch's own attention over contiguous memory; norm, gate,
rotation and store as bytes per second; products of few rows as bytes of the weight per
second, torch's and ours, and which is chosen; sampling as bytes of logits per second, the kernel
alone and the whole of it from parameters to tokens on the host. Where constants could be others, these too:
`rows x keys, warps, stages`, and for decode the number of pieces of keys.

    PYTHONPATH=libs python bench/gpu_kernels.py --json > kernels.jsonl

Less than a minute on an H100. Decode runs in CUDA graphs, as when it serves, each call
over other blocks, so that none are in the cache of the call before.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from triton.testing import do_bench

from engine.attention import ScoreRule
from engine.device_sampler import Table, choose, sample
from engine.fastest import fastest, seconds
from engine.kernel_choice import calls, workspace
from engine.products import ROWS, Gated, Kernel, Product, Sum
from engine.triton_decode import attend_decode, num_more_pieces, tiling_of_decode
from engine.triton_keys import LayerMemory, Tiling
from engine.triton_linear import Tiling as LinearTiling
from engine.triton_rows import gate, rms_norm, rotate
from engine.triton_store import store
from engine.triton_tiles import attend_tiles, tile_tokens, tiling_of_tiles
from protocol.memory import LayerGeometry
from protocol.sampling import SamplingParams

HEADS, KV_HEADS, DIM = 32, 8, 128
HIDDEN, INTERMEDIATE = 4096, 14336
TOKEN_BYTES = 2 * KV_HEADS * DIM * 2  # K and V in bfloat16
MAX_POOL_BYTES = 20 * 10**9
COLD_BYTES = 256 * 10**6  # several times the L2 cache
MAX_CALLS = 16
GEOMETRY = LayerGeometry(num_kv_heads=KV_HEADS, k_head_dim=DIM, v_head_dim=DIM)
RULE = ScoreRule(scaling=DIM**-0.5)
BLOCK_SIZES = (16, 64)
BATCHES = (1, 8, 32, 128)
CONTEXTS = (1024, 8192, 32768)
# Sequences and context of the decode steps that compare constants.
COMPARED = ((1, 8192), (8, 8192), (32, 8192), (128, 1024))
DECODE_TILINGS = [
    Tiling(rows=64, keys=keys, num_warps=warps, num_stages=stages)
    for keys, warps, stages in (
        (32, 4, 3),
        (32, 4, 4),
        (64, 4, 2),
        (64, 4, 4),
        (64, 8, 3),
        (128, 4, 2),
        (128, 8, 2),
        (128, 8, 3),
    )
]
# Tokens before the chunk, tokens of the chunk.
PROMPTS = ((0, 2048), (0, 8192), (8192, 2048))
PROMPT_TILINGS = [
    Tiling(rows=rows, keys=keys, num_warps=warps, num_stages=stages)
    for rows, keys, warps, stages in (
        (128, 64, 8, 2),
        (128, 64, 8, 4),
        (128, 128, 8, 2),
        (128, 128, 8, 3),
        (64, 64, 4, 2),
        (64, 64, 4, 3),
        (64, 128, 4, 2),
    )
]
VOCAB_SIZE = 128_256
SAMPLED = {
    "greedy": SamplingParams(max_tokens=1, temperature=0.0),
    "temperature": SamplingParams(max_tokens=1, temperature=0.8),
    "top_p 0.9": SamplingParams(max_tokens=1, temperature=0.8, top_p=0.9),
    "top_k 40": SamplingParams(max_tokens=1, temperature=0.8, top_k=40),
}


# Names of products, how they are made of a weight, and its shape.
LINEARS: tuple[tuple[str, Callable[[Tensor], Product], int, int], ...] = (
    ("q, k, v", Product, (HEADS + 2 * KV_HEADS) * DIM, HIDDEN),
    ("o, added", Sum, HIDDEN, HEADS * DIM),
    ("gate and up", lambda weight: Gated(weight, "silu"), 2 * INTERMEDIATE, HIDDEN),
    ("down, added", Sum, HIDDEN, INTERMEDIATE),
    ("lm_head", Product, VOCAB_SIZE, HIDDEN),
)
# Beside those that are chosen from; for one row.
OTHER_LINEAR_TILINGS = (
    LinearTiling(4, 512, 2),
    LinearTiling(8, 1024, 4),
    LinearTiling(2, 4096, 8),
    LinearTiling(4, 4096, 8),
)


@dataclass(frozen=True)
class Measurement:
    """One line of the table; `share` is of what the row is compared with."""

    kernel: str
    shape: str
    constants: str
    microseconds: float
    rate: float
    unit: str
    share: float | None = None  # of the copy's rate


def milliseconds(act: Callable[[], object]) -> float:
    """The median of about 20 ms of calls, the cache emptied before each."""
    return float(do_bench(act, warmup=5, rep=20, return_mode="median"))


def recorded_milliseconds(acts: Sequence[Callable[[], object]]) -> float:
    """One call of these, when a CUDA graph makes all of them."""
    acts[0]()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for act in acts:
            act()
    return milliseconds(graph.replay) / len(acts)


def copy_rate() -> float:
    """Bytes per second of a copy, read and written."""
    source = torch.empty(10**9, dtype=torch.int8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / milliseconds(lambda: target.copy_(source)) * 1e3


def layer_over(pool: Tensor, block_size: int) -> LayerMemory:
    """Random numbers as blocks of one layer."""
    of_keys = KV_HEADS * block_size * DIM
    blocks = pool[: len(pool) // (2 * of_keys) * (2 * of_keys)].view(-1, 2 * of_keys)
    return LayerMemory(blocks, block_size, 0, of_keys, GEOMETRY)


def scattered_tables(layer: LayerMemory, rows: int, context: int) -> Tensor:
    """Tables of some sequences over the whole pool, [rows, blocks of context] int32."""
    width = -(-context // layer.block_size)
    order = torch.randperm(len(layer.memory), device="cuda", dtype=torch.int32)
    return order[: rows * width].view(rows, width)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16)


def named(tiling: Tiling) -> str:
    return f"{tiling.rows}x{tiling.keys}, {tiling.num_warps}, {tiling.num_stages}"


def decode_of(
    layer: LayerMemory,
    batch: int,
    context: int,
    tiling: Tiling,
    num_more: int,
    copy: float,
) -> Measurement:
    read = batch * context * TOKEN_BYTES
    room = len(layer.memory) * layer.block_size // (batch * context)
    num_calls = max(1, min(MAX_CALLS, COLD_BYTES // read, room))
    tables = scattered_tables(layer, num_calls * batch, context)
    lengths = torch.full((batch,), context, dtype=torch.int32, device="cuda")
    query = normal(batch, HEADS, DIM)
    arrived = torch.zeros(batch * HEADS, dtype=torch.int32, device="cuda")

    def call(rows: Tensor) -> Callable[[], Tensor]:
        return lambda: attend_decode(
            query, layer, rows, lengths, RULE, num_more, arrived, tiling
        )

    time = recorded_milliseconds(
        [call(rows) for rows in tables.view(num_calls, batch, -1)]
    )
    rate = read / time * 1e3
    shape = f"{batch} x {context}, blocks of {layer.block_size}"
    constants = f"{named(tiling)}, {num_more} pieces more"
    return Measurement(
        "decode", shape, constants, time * 1e3, rate / 1e9, "GB/s", rate / copy
    )


def decodes(copy: float) -> Iterator[Measurement]:
    num_sms = torch.cuda.get_device_properties("cuda").multi_processor_count
    num_more = num_more_pieces(KV_HEADS, num_sms)
    needed = max(BATCHES) * max(CONTEXTS) * TOKEN_BYTES
    size = min(needed, MAX_POOL_BYTES) // 2
    pool = torch.empty(size, device="cuda", dtype=torch.bfloat16).normal_()
    for block_size in BLOCK_SIZES:
        layer = layer_over(pool, block_size)
        tiling = tiling_of_decode(layer)
        for context in CONTEXTS:
            for batch in BATCHES:
                if batch * context * TOKEN_BYTES <= pool.nbytes:
                    yield decode_of(layer, batch, context, tiling, num_more, copy)
        for batch, context in COMPARED:
            for other in DECODE_TILINGS:
                yield decode_of(layer, batch, context, other, num_more, copy)
            for more in (num_more // 2, num_more * 2):
                yield decode_of(layer, batch, context, tiling, more, copy)


def prompt_of(
    layer: LayerMemory, prefix: int, chunk: int, tiling: Tiling
) -> Measurement:
    tables = scattered_tables(layer, 1, prefix + chunk)
    step = tile_tokens(HEADS, KV_HEADS)
    tiles = [
        [0, at, min(step, chunk - at), prefix + at] for at in range(0, chunk, step)
    ]
    on_gpu = torch.tensor(tiles, dtype=torch.int32, device="cuda")
    query = normal(chunk, HEADS, DIM)
    time = milliseconds(
        lambda: attend_tiles(query, layer, tables, on_gpu, RULE, tiling)
    )
    shape = f"{chunk} after {prefix}, blocks of {layer.block_size}"
    rate = flops(prefix, chunk) / time / 1e9
    return Measurement("prompt", shape, named(tiling), time * 1e3, rate, "TFLOP/s")


def flops(prefix: int, chunk: int) -> int:
    """Of the scores that are seen, and of their values."""
    seen = chunk * prefix + chunk * (chunk + 1) // 2
    return 4 * HEADS * DIM * seen


def prompts() -> Iterator[Measurement]:
    pool = normal(max(sum(prompt) for prompt in PROMPTS) * TOKEN_BYTES // 2)
    for block_size in BLOCK_SIZES:
        layer = layer_over(pool, block_size)
        for prefix, chunk in PROMPTS:
            for tiling in (tiling_of_tiles(layer), *PROMPT_TILINGS):
                yield prompt_of(layer, prefix, chunk, tiling)
    for _, chunk in PROMPTS[:2]:
        for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):
            with suppress(RuntimeError):  # this torch was built without it
                yield torch_prompt(chunk, backend)


def torch_prompt(chunk: int, backend: SDPBackend) -> Measurement:
    """torch's attention over contiguous K and V, one copy of them per query head."""
    q, k, v = (normal(1, HEADS, chunk, DIM) for _ in range(3))
    with sdpa_kernel([backend]):
        time = milliseconds(
            lambda: scaled_dot_product_attention(q, k, v, is_causal=True)
        )
    rate = flops(0, chunk) / time / 1e9
    shape = f"{chunk} after 0, contiguous"
    return Measurement(f"torch {backend.name}", shape, "", time * 1e3, rate, "TFLOP/s")


def rows(num_tokens: int, copy: float) -> Iterator[Measurement]:
    x, weight = normal(num_tokens, HIDDEN), normal(HIDDEN)
    both = normal(num_tokens, 2 * INTERMEDIATE)
    gates, ups = both.chunk(2, dim=-1)
    q, k = normal(num_tokens, HEADS, DIM), normal(num_tokens, KV_HEADS, DIM)
    cos, sin = normal(num_tokens, DIM), normal(num_tokens, DIM)
    layer = layer_over(normal((num_tokens + 16) * TOKEN_BYTES), 16)
    slots = torch.randperm(num_tokens, device="cuda")
    acts: dict[str, tuple[Callable[[], object], int]] = {
        "norm": (lambda: rms_norm(x, weight, 1e-5), 2 * x.nbytes),
        "gate": (lambda: gate(gates, ups, "silu"), 3 * both.nbytes // 2),
        "rotate": (lambda: rotate(q, k, cos, sin), 2 * (q.nbytes + k.nbytes)),
        "store": (lambda: store(layer, k, k, slots), 4 * k.nbytes),
    }
    for name, (act, num_bytes) in acts.items():
        time = recorded_milliseconds([act])
        rate = num_bytes / time * 1e3
        shape = f"{num_tokens} tokens"
        yield Measurement(name, shape, "", time * 1e3, rate / 1e9, "GB/s", rate / copy)


def samplers() -> Iterator[Measurement]:
    for batch in (1, 8, 32):
        logits = normal(batch, VOCAB_SIZE) * 3
        for name, one in SAMPLED.items():
            params = [one.model_copy(update={"seed": row}) for row in range(batch)]
            yield from sampler_of(logits, name, params)


def sampler_of(
    logits: Tensor, name: str, params: list[SamplingParams]
) -> Iterator[Measurement]:
    indices = range(len(params))
    table = Table.upload(params, indices, VOCAB_SIZE, logits.device)
    shape = f"{len(params)} x {VOCAB_SIZE}"
    acts: dict[str, Callable[[], object]] = {
        "sampler kernel": lambda: choose(logits, table),
        "sampler": lambda: sample(logits, params, indices),
    }
    for kernel, act in acts.items():
        time = milliseconds(act)
        rate = logits.nbytes / time / 1e6
        yield Measurement(kernel, shape, name, time * 1e3, rate, "GB/s")


def linears(copy: float) -> Iterator[Measurement]:
    num_sms = torch.cuda.get_device_properties("cuda").multi_processor_count
    for name, made, outputs, inputs in LINEARS:
        num_weights = -(-2 * COLD_BYTES // (2 * outputs * inputs))
        weights = [normal(outputs, inputs) * 0.02 for _ in range(num_weights)]
        products = [made(weight) for weight in weights]
        space = workspace(products, [num_sms], weights[0].device)
        for product in products:
            product.space = space
        for num_rows in ROWS:
            yield from linear_of(products, name, num_rows, num_sms, copy)


def linear_of(
    products: Sequence[Product], name: str, num_rows: int, num_sms: int, copy: float
) -> Iterator[Measurement]:
    """By torch, by each kernel, and by what is chosen."""
    first, operands = products[0], products[0].operands(num_rows)
    acts = [
        lambda kernel, each=each: each.by(kernel, *operands) for each in calls(products)
    ]
    candidates = first.candidates(num_rows, num_sms)
    others = OTHER_LINEAR_TILINGS if num_rows == 1 else ()
    kernels: tuple[Kernel | None, ...] = (None, *candidates, *others)
    with torch.inference_mode():
        best = fastest(acts, candidates)
        for kernel in kernels:
            time = seconds(acts, kernel)
            rate = first.weight.nbytes / time
            constants = "torch" if kernel is None else constants_of(kernel)
            chosen = ", chosen" if kernel == best else ""
            yield Measurement(
                f"linear {name}",
                f"{num_rows} x {len(first.weight)} x {operands[0].shape[1]}",
                constants + chosen,
                time * 1e6,
                rate / 1e9,
                "GB/s",
                rate / copy,
            )


def constants_of(kernel: Kernel) -> str:
    """Outputs x inputs; stages, warps and programs that share them, or warps only."""
    outputs, inputs, *others = kernel
    return ", ".join([f"{outputs}x{inputs}", *map(str, others)])


def measurements(only: str | None) -> Iterator[Measurement]:
    copy = copy_rate()
    yield Measurement("copy", "1 GB", "", 2e15 / copy, copy / 1e9, "GB/s", 1.0)
    if only in (None, "rows"):
        for num_tokens in (1, 64, 8192):
            yield from rows(num_tokens, copy)
    if only in (None, "linear"):
        yield from linears(copy)
    if only in (None, "sampler"):
        yield from samplers()
    if only in (None, "prompt"):
        yield from prompts()
    if only in (None, "decode"):
        yield from decodes(copy)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="a JSON object per line")
    parser.add_argument(
        "--only", choices=("rows", "linear", "sampler", "prompt", "decode")
    )
    arguments = parser.parse_args()
    for one in measurements(arguments.only):
        if arguments.json:
            print(json.dumps(asdict(one)), flush=True)
            continue
        share = "" if one.share is None else f"{one.share:6.0%} of copy"
        print(
            f"{one.kernel:22} {one.shape:28} {one.constants:22}"
            f"{one.microseconds:10.1f} us {one.rate:9.1f} {one.unit:8}{share}",
            flush=True,
        )


if __name__ == "__main__":
    main()
