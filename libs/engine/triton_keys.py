"""Attending keys that lie in blocks: what the kernels of prompts and of decode share.

Triton, also run by its interpreter (TRITON_INTERPRET=1 before the import). Kernels know a
block pool and tables, neither streams nor graphs; nothing here waits for the GPU or chooses
a grid by what a tensor holds, so that CUDA graphs may record all of it.

The softmax streams over tiles of keys as in FlashAttention-2 (arXiv 2307.08691, section
3.1), with 2 as its base. Keys lie in blocks found through tables as in PagedAttention
(arXiv 2309.06180, section 4.1). Query heads that share a KV head are rows of one product,
so each key is read once for all of them.

Kernels take what they need one by one: Triton has no structures to hand over.
"""

from dataclasses import dataclass
from math import e, log2

import triton
import triton.language as tl
from torch import Tensor

from engine.attention import ScoreRule
from protocol.memory import LayerGeometry

_MIN_ROWS = 16  # fewer rows make no product
# The interpreter holds bfloat16 as 16-bit integers, and would multiply these.
_UPCAST = bool(triton.knobs.runtime.interpret)


@dataclass(frozen=True, slots=True)
class LayerMemory:
    """Where one layer's K and V lie in the pool.

    `memory` is [num_blocks, elements of one block], float32 or bfloat16, rows
    contiguous. In each row the layer's K is [num_kv_heads, block_size, k_head_dim] from
    element `k_offset` on, its V [num_kv_heads, block_size, v_head_dim] from `v_offset`.
    """

    memory: Tensor
    block_size: int
    k_offset: int
    v_offset: int
    geometry: LayerGeometry


@dataclass(frozen=True, slots=True)
class Tiling:
    """Constants of a kernel: rows x keys of its product, warps, stages of its loads."""

    rows: int
    keys: int
    num_warps: int
    num_stages: int


def num_rows_of(count: int) -> int:
    return max(_MIN_ROWS, triton.next_power_of_2(count))


def width_of(dim: int) -> int:
    return max(_MIN_ROWS, triton.next_power_of_2(dim))


def strides_of(
    query: Tensor, layer: LayerMemory, block_tables: Tensor
) -> tuple[int, ...]:
    assert query.stride(-1) == 1, "a head's elements lie together"
    assert query.dtype == layer.memory.dtype, "dtype of the pool"
    assert block_tables.stride(-1) == 1, "a table's entries lie together"
    return (
        *query.stride()[:2],
        layer.memory.stride(0),
        block_tables.stride(0),
        layer.k_offset,
        layer.v_offset,
    )


def numbers_of(rule: ScoreRule) -> tuple[float, float, int]:
    """Scale, cap and window as `attend_keys` wants them."""
    assert rule.scaling > 0, "the largest score is the scale times the largest product"
    if not rule.softcap:
        return rule.scaling * log2(e), 0.0, rule.window
    return (
        2 * rule.scaling / rule.softcap * log2(e),
        rule.softcap * log2(e),
        rule.window,
    )


def constants_of(query: Tensor, layer: LayerMemory, rule: ScoreRule) -> dict[str, int]:
    """A K dimension like 192 is a product over 128 and one over 64."""
    geometry = layer.geometry
    assert query.shape[2] == geometry.k_head_dim, "the layer's dimension"
    padded = width_of(geometry.k_head_dim)
    main = padded if padded == geometry.k_head_dim or padded < 64 else padded // 2
    return {
        "group": query.shape[1] // geometry.num_kv_heads,
        "block_size": layer.block_size,
        "k_dim": geometry.k_head_dim,
        "v_dim": geometry.v_head_dim,
        "k_main": main,
        "k_rest": 0 if main == padded else width_of(geometry.k_head_dim - main),
        "v_width": width_of(geometry.v_head_dim),
        "has_window": rule.window > 0,
        "has_cap": rule.softcap > 0,
        "upcast": _UPCAST,
    }


def sizes_of(tiling: Tiling, rows: int) -> dict[str, int]:
    return {
        "rows": rows,
        "keys": tiling.keys,
        "num_warps": tiling.num_warps,
        "num_stages": tiling.num_stages,
    }


@triton.jit
def rows_of(
    pointers,
    first: tl.constexpr,
    width: tl.constexpr,
    dim: tl.constexpr,
    is_real,
    is_masked: tl.constexpr,
    upcast: tl.constexpr,
):
    """Elements first to first + width of rows of `dim`; zeros where there are none."""
    at = first + tl.arange(0, width)
    if is_masked and first + width > dim:
        mask = is_real[:, None] & (at < dim)[None, :]
        rows = tl.load(pointers[:, None] + at[None, :], mask=mask, other=0.0)
    elif is_masked:
        rows = tl.load(
            pointers[:, None] + at[None, :], mask=is_real[:, None], other=0.0
        )
    elif first + width > dim:
        mask = (at < dim)[None, :]
        rows = tl.load(pointers[:, None] + at[None, :], mask=mask, other=0.0)
    else:
        rows = tl.load(pointers[:, None] + at[None, :])
    if upcast:
        rows = rows.to(tl.float32)
    return rows


@triton.jit
def _blocks_of(
    table,
    first,
    stop,
    end,
    block_size: tl.constexpr,
    keys: tl.constexpr,
):
    """Block numbers of a tile of keys, or their one block's; zeros from `stop` on."""
    if block_size % keys == 0:
        blocks = tl.load(table + first // block_size, mask=first < stop, other=0)
    else:
        key = first + tl.arange(0, keys)
        blocks = tl.load(table + key // block_size, mask=key < end, other=0)
    return blocks


@triton.jit
def attend_keys(
    totals,
    largest,
    sums,
    q,
    q_rest,
    positions,
    memory,
    table,
    start,
    stop,
    begin,
    end,
    block_stride,
    k_offset,
    v_offset,
    scale,
    cap,
    window,
    block_size: tl.constexpr,
    k_dim: tl.constexpr,
    v_dim: tl.constexpr,
    k_main: tl.constexpr,
    k_rest: tl.constexpr,
    v_width: tl.constexpr,
    keys: tl.constexpr,
    has_window: tl.constexpr,
    has_cap: tl.constexpr,
    is_masked: tl.constexpr,
    upcast: tl.constexpr,
):
    """Fold the keys start to stop, tile by tile, into a running softmax.

    Unmasked, every row sees all of them. Masked, none outside begin to end is read and
    a row sees those up to its position. `largest` is in units of log2; the products
    times `scale` are, or with a cap twice the tanh's argument, and the cap is.
    """
    # Looked up a tile ahead: loads that await another in the same turn of the loop would
    # have one buffer and no products beside them.
    block = _blocks_of(table, start, stop, end, block_size, keys)
    for first in range(start, stop, keys):
        key = first + tl.arange(0, keys)
        is_real = (key >= begin) & (key < end)
        place = memory + block.to(tl.int64) * block_stride
        block = _blocks_of(table, first + keys, stop, end, block_size, keys)
        offset = key % block_size
        at_k = place + (k_offset + offset * k_dim)
        k = rows_of(at_k, 0, k_main, k_dim, is_real, is_masked, upcast)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee")
        if k_rest > 0:
            k = rows_of(at_k, k_main, k_rest, k_dim, is_real, is_masked, upcast)
            scores = tl.dot(q_rest, tl.trans(k), scores, input_precision="ieee")
        unit = scale
        if has_cap:
            # c tanh(s / c), with tanh x = 1 - 2 / (exp(2 x) + 1).
            scores = cap - 2 * cap / (tl.exp2(scores * scale) + 1)
            unit = 1.0
        if is_masked:
            is_seen = key[None, :] <= positions[:, None]
            if has_window:
                is_seen &= key[None, :] > positions[:, None] - window
            scores = tl.where(is_seen, scores, float("-inf"))
        larger = tl.maximum(largest, tl.max(scores, 1) * unit)
        # A row that has seen nothing yet has no largest score to subtract.
        known = tl.where(larger == float("-inf"), 0.0, larger)
        weights = tl.exp2(scores * unit - known[:, None])
        shrink = tl.exp2(largest - known)
        sums = sums * shrink + tl.sum(weights, 1)
        at_v = place + (v_offset + offset * v_dim)
        v = rows_of(at_v, 0, v_width, v_dim, is_real, is_masked, upcast)
        totals = totals * shrink[:, None]
        totals = tl.dot(weights.to(v.dtype), v, totals, input_precision="ieee")
        largest = larger
    return totals, largest, sums
