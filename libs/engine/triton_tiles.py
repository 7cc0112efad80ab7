"""Attention of prompts, and of mixtures with single tokens: tiles of tokens over all keys
that they see. A Triton kernel over `engine.triton_keys`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.attention import ScoreRule
from engine.triton_keys import (
    LayerMemory,
    Tiling,
    attend_keys,
    constants_of,
    num_rows_of,
    numbers_of,
    rows_of,
    sizes_of,
    strides_of,
)

_TILE_ROWS = 128  # of a product: tokens x query heads of a group


def tile_tokens(num_heads: int, num_kv_heads: int) -> int:
    """How many tokens a tile of `attend_tiles` may have at most."""
    return max(1, _TILE_ROWS // (num_heads // num_kv_heads))


def attend_tiles(
    query: Tensor,
    layer: LayerMemory,
    block_tables: Tensor,
    tiles: Tensor,
    rule: ScoreRule,
    tiling: Tiling | None = None,
) -> Tensor:
    """Attend runs of tokens: prompts, or mixtures of them with single tokens.

    query [num_tokens, num_heads, k_head_dim], last dimension contiguous, in the pool's
    dtype; block_tables [num_rows, width] int32; tiles [num_tiles, 4] int32: row of the
    tables, first packed token, number of tokens (at most `tile_tokens`; 0 is padding),
    the first one's position. A token at position p sees the keys of positions up to p.
    Returns [num_tokens, num_heads, v_head_dim]; rows that no tile has are undefined.

    An infinite or NaN value of a later token in the same tile may spoil its earlier
    neighbours of the same sequence; what no token of the tile sees spoils nothing.
    """
    kv_heads, v_dim = layer.geometry.num_kv_heads, layer.geometry.v_head_dim
    output = query.new_empty((*query.shape[:2], v_dim))
    if len(tiles) == 0:
        return output
    tokens = tile_tokens(query.shape[1], kv_heads)
    num_rows = num_rows_of(tokens * (query.shape[1] // kv_heads))
    tiling = tiling or tiling_of_tiles(layer)
    rows = min(num_rows, tiling.rows)
    _tiles_kernel[len(tiles), kv_heads, num_rows // rows](
        query,
        output,
        layer.memory,
        block_tables,
        tiles,
        *strides_of(query, layer, block_tables),
        *numbers_of(rule),
        **constants_of(query, layer, rule),
        **sizes_of(tiling, rows),
    )
    return output


def tiling_of_tiles(layer: LayerMemory) -> Tiling:
    """What suits Hopper: its registers and 227 KiB of shared memory, none spilled.

    float32 is exact without tensor cores, which needs small products.
    """
    k_dim, v_dim = layer.geometry.k_head_dim, layer.geometry.v_head_dim
    widest = max(k_dim, v_dim)
    if layer.memory.dtype == torch.float32:
        if widest <= 128:
            return Tiling(rows=32, keys=32, num_warps=8, num_stages=1)
        return Tiling(
            rows=32 if widest <= 256 else 16, keys=16, num_warps=8, num_stages=1
        )
    if widest <= 64:
        return Tiling(rows=128, keys=128, num_warps=8, num_stages=3)
    if k_dim <= 192 and v_dim <= 128:
        return Tiling(rows=128, keys=64, num_warps=8, num_stages=3)
    if widest <= 256:
        return Tiling(rows=128, keys=32, num_warps=8, num_stages=3)
    return Tiling(rows=64, keys=16, num_warps=8, num_stages=2)


@triton.jit(
    do_not_specialize=("table_stride",),  # it differs from step to step
    do_not_specialize_on_alignment=("block_tables", "tiles"),
)
def _tiles_kernel(
    query,
    output,
    memory,
    block_tables,
    tiles,
    q_token_stride,
    q_head_stride,
    block_stride,
    table_stride,
    k_offset,
    v_offset,
    scale,
    cap,
    window,
    group: tl.constexpr,
    block_size: tl.constexpr,
    k_dim: tl.constexpr,
    v_dim: tl.constexpr,
    k_main: tl.constexpr,
    k_rest: tl.constexpr,
    v_width: tl.constexpr,
    has_window: tl.constexpr,
    has_cap: tl.constexpr,
    upcast: tl.constexpr,
    rows: tl.constexpr,
    keys: tl.constexpr,
):
    """One program: `rows` of (tokens of a tile) x (query heads of a KV head)."""
    # A prompt's later tiles see more keys: they go first.
    tile = tiles + (tl.num_programs(0) - 1 - tl.program_id(0)) * 4
    table = block_tables + tl.load(tile).to(tl.int64) * table_stride
    num_tokens = tl.load(tile + 2)
    position = tl.load(tile + 3)
    kv_head = tl.program_id(1)
    first_row = tl.program_id(2) * rows
    if first_row >= num_tokens * group:
        return
    row = first_row + tl.arange(0, rows)
    is_real = row < num_tokens * group
    token = (tl.load(tile + 1) + row // group).to(tl.int64)
    head = kv_head * group + row % group
    at_q = query + token * q_token_stride + head * q_head_stride
    q = rows_of(at_q, 0, k_main, k_dim, is_real, True, upcast)
    q_rest = q
    if k_rest > 0:
        q_rest = rows_of(at_q, k_main, k_rest, k_dim, is_real, True, upcast)
    positions = position + row // group
    earliest = position + first_row // group
    end = position + tl.minimum((first_row + rows - 1) // group + 1, num_tokens)
    begin = 0
    start = 0
    if has_window:
        begin = tl.maximum(earliest - window + 1, 0)
        start = begin // keys * keys
    totals = tl.zeros([rows, v_width], tl.float32)
    largest = tl.full([rows], float("-inf"), tl.float32)
    sums = tl.zeros([rows], tl.float32)
    if not has_window:
        # Tiles of keys that every row sees.
        middle = (earliest + 1) // keys * keys
        totals, largest, sums = attend_keys(
            totals, largest, sums, q, q_rest, positions,
            memory, table, start, middle, begin, end,
            block_stride, k_offset + kv_head * block_size * k_dim,
            v_offset + kv_head * block_size * v_dim, scale, cap, window,
            block_size, k_dim, v_dim, k_main, k_rest, v_width, keys,
            has_window, has_cap, False, upcast,
        )  # fmt: skip
        start = middle
    totals, largest, sums = attend_keys(
        totals, largest, sums, q, q_rest, positions,
        memory, table, start, end, begin, end,
        block_stride, k_offset + kv_head * block_size * k_dim,
        v_offset + kv_head * block_size * v_dim, scale, cap, window,
        block_size, k_dim, v_dim, k_main, k_rest, v_width, keys,
        has_window, has_cap, True, upcast,
    )  # fmt: skip
    dim = tl.arange(0, v_width)
    at = output + (token * tl.num_programs(1) * group + head) * v_dim
    # A row of no token may have seen nothing.
    totals /= tl.where(sums == 0, 1.0, sums)[:, None]
    answer = totals.to(output.dtype.element_ty)
    mask = is_real[:, None] & (dim < v_dim)[None, :]
    tl.store(at[:, None] + dim[None, :], answer, mask=mask)
