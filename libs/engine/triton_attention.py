"""Paged attention on a GPU: store K and V, attend many tokens or one of each sequence.

Triton kernels, also run by its interpreter (TRITON_INTERPRET=1 before the import). They
know a block pool and tables, neither streams nor graphs; nothing here waits for the
GPU or chooses a grid by what a tensor holds, so that CUDA graphs may record all of it.

The softmax streams over tiles of keys as in FlashAttention-2 (arXiv 2307.08691, section
3.1), with 2 as its base. Keys lie in blocks found through tables as in PagedAttention
(arXiv 2309.06180, section 4.1). One query token of a long sequence is attended by
several programs, each over a piece of its keys, as in Flash-Decoding
(pytorch.org/blog/flash-decoding); the longer a sequence is beside the others of its step,
the more pieces it has, so that no program works on alone when the others are done. Query
heads that share a KV head are rows of one product, so each key is read once for all of
them.

Longer than other files, with more parameters: kernels take what they need one by one.
"""

from dataclasses import dataclass
from math import e, log2

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.attention import ScoreRule
from protocol.memory import LayerGeometry

# Rows of one product: tokens x query heads of a group. Fewer than 16 make none.
_TILE_ROWS = 128
_MIN_ROWS = 16
_FULL = 2  # programs that each multiprocessor should have
_FEW_SEQUENCES = 64  # one kernel serves all steps of so many

# The interpreter holds bfloat16 as 16-bit integers, and would multiply these.
_UPCAST = bool(triton.knobs.runtime.interpret)

# Numbers that differ from step to step: one kernel serves them all, and none is
# compiled while a request waits.
_VARYING = ("table_stride", "num_sequences", "num_more")
_INDICES = ("block_tables", "tiles", "lengths", "slot_mapping")


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


def tile_tokens(num_heads: int, num_kv_heads: int) -> int:
    """How many tokens a tile of `attend_tiles` may have at most."""
    return max(1, _TILE_ROWS // (num_heads // num_kv_heads))


def num_more_pieces(num_kv_heads: int, num_sms: int) -> int:
    """How many pieces of keys a step may have beyond one of each sequence: 1 or more.

    So many that they alone give each multiprocessor about two programs.
    """
    return max(1, round(_FULL * num_sms / num_kv_heads))


def store(layer: LayerMemory, key: Tensor, value: Tensor, slot_mapping: Tensor) -> None:
    """Write K and V of each token to its slot.

    key [num_tokens, num_kv_heads, k_head_dim], value [.., .., v_head_dim], last
    dimensions contiguous, in the pool's dtype. slot_mapping [num_tokens] int32 or int64
    has block x block_size + offset in it; a token with a negative slot is skipped.
    """
    assert key.stride(-1) == value.stride(-1) == 1, "a head's elements lie together"
    assert key.dtype == value.dtype == layer.memory.dtype, "dtype of the pool"
    if len(key) == 0:
        return
    geometry = layer.geometry
    width = triton.next_power_of_2(max(geometry.k_head_dim, geometry.v_head_dim))
    heads = triton.next_power_of_2(geometry.num_kv_heads)
    heads = min(heads, max(1, 2048 // width))
    _store_kernel[len(key), triton.cdiv(geometry.num_kv_heads, heads)](
        key,
        value,
        layer.memory,
        slot_mapping,
        *key.stride()[:2],
        *value.stride()[:2],
        layer.memory.stride(0),
        layer.k_offset,
        layer.v_offset,
        kv_heads=geometry.num_kv_heads,
        block_size=layer.block_size,
        k_dim=geometry.k_head_dim,
        v_dim=geometry.v_head_dim,
        heads=heads,
        width=width,
    )


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
    num_rows = _num_rows(tokens * (query.shape[1] // kv_heads))
    tiling = tiling or tiling_of_tiles(layer)
    rows = min(num_rows, tiling.rows)
    _tiles_kernel[len(tiles), kv_heads, num_rows // rows](
        query,
        output,
        layer.memory,
        block_tables,
        tiles,
        *_strides(query, layer, block_tables),
        *_numbers(rule),
        **_constants(query, layer, rule),
        **_sizes(tiling, rows),
    )
    return output


def attend_decode(
    query: Tensor,
    layer: LayerMemory,
    block_tables: Tensor,
    lengths: Tensor,
    rule: ScoreRule,
    num_more: int,
    arrived: Tensor,
    tiling: Tiling | None = None,
) -> Tensor:
    """Attend one token of each sequence, the long ones in pieces of about one length.

    query [num_sequences, num_heads, k_head_dim], last dimension contiguous, in the
    pool's dtype; block_tables [num_sequences, width] int32; lengths [num_sequences]
    int32: keys that the token sees, its own included. Row i belongs to sequence i. There
    are at most num_sequences + `num_more` pieces for each KV head. `arrived`, int32, has
    a zero for each head of each sequence, here and again when the answer is there.
    Returns [num_sequences, num_heads, v_head_dim]; zeros where the length is 0 (a
    graph's padding), whose tables are not read. Partial sums are float32, and added in
    the order of the keys.
    """
    num_sequences, num_heads, _ = query.shape
    kv_heads, v_dim = layer.geometry.num_kv_heads, layer.geometry.v_head_dim
    output = query.new_empty((num_sequences, num_heads, v_dim))
    if num_sequences == 0:
        return output
    assert arrived.numel() >= num_sequences * num_heads, "a zero for each head"
    num_pieces = num_sequences + num_more
    shape = num_pieces, num_heads
    partial = query.new_empty((*shape, v_dim), dtype=torch.float32)
    sums = query.new_empty((*shape, 2), dtype=torch.float32)
    group = num_heads // kv_heads
    tiling = tiling or tiling_of_decode(layer)
    rows = min(_num_rows(group), tiling.rows)
    slices = triton.cdiv(group, rows)
    # Programs without a piece come last, when all others have begun.
    _decode_kernel[kv_heads * slices, num_pieces](
        query,
        output,
        partial,
        sums,
        arrived,
        layer.memory,
        block_tables,
        lengths,
        num_sequences,
        num_more,
        *_strides(query, layer, block_tables),
        *_numbers(rule),
        **_constants(query, layer, rule),
        **_sizes(tiling, rows),
        slices=slices,
        sequences=max(_FEW_SEQUENCES, triton.next_power_of_2(num_sequences)),
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


def tiling_of_decode(layer: LayerMemory) -> Tiling:
    """What suits Hopper: more bytes on their way than its memory's latency takes."""
    k_dim, v_dim = layer.geometry.k_head_dim, layer.geometry.v_head_dim
    widest = max(k_dim, v_dim)
    if layer.memory.dtype == torch.float32:
        if widest <= 128:
            return Tiling(rows=16, keys=32, num_warps=4, num_stages=1)
        return Tiling(rows=16, keys=16, num_warps=8, num_stages=1)
    if k_dim <= 192 and v_dim <= 128:
        return Tiling(rows=64, keys=64, num_warps=4, num_stages=3)
    if widest <= 256:
        return Tiling(rows=32, keys=32, num_warps=4, num_stages=3)
    return Tiling(rows=16, keys=16, num_warps=4, num_stages=3)


def _num_rows(count: int) -> int:
    return max(_MIN_ROWS, triton.next_power_of_2(count))


def _width(dim: int) -> int:
    return max(_MIN_ROWS, triton.next_power_of_2(dim))


def _strides(
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


def _numbers(rule: ScoreRule) -> tuple[float, float, int]:
    """Scale, cap and window as `_attend_keys` wants them."""
    assert rule.scaling > 0, "the largest score is the scale times the largest product"
    if not rule.softcap:
        return rule.scaling * log2(e), 0.0, rule.window
    return (
        2 * rule.scaling / rule.softcap * log2(e),
        rule.softcap * log2(e),
        rule.window,
    )


def _constants(query: Tensor, layer: LayerMemory, rule: ScoreRule) -> dict[str, int]:
    """A K dimension like 192 is a product over 128 and one over 64."""
    geometry = layer.geometry
    assert query.shape[2] == geometry.k_head_dim, "the layer's dimension"
    padded = _width(geometry.k_head_dim)
    main = padded if padded == geometry.k_head_dim or padded < 64 else padded // 2
    return {
        "group": query.shape[1] // geometry.num_kv_heads,
        "block_size": layer.block_size,
        "k_dim": geometry.k_head_dim,
        "v_dim": geometry.v_head_dim,
        "k_main": main,
        "k_rest": 0 if main == padded else _width(geometry.k_head_dim - main),
        "v_width": _width(geometry.v_head_dim),
        "has_window": rule.window > 0,
        "has_cap": rule.softcap > 0,
        "upcast": _UPCAST,
    }


def _sizes(tiling: Tiling, rows: int) -> dict[str, int]:
    return {
        "rows": rows,
        "keys": tiling.keys,
        "num_warps": tiling.num_warps,
        "num_stages": tiling.num_stages,
    }


@triton.jit(do_not_specialize_on_alignment=_INDICES)
def _store_kernel(
    key,
    value,
    memory,
    slot_mapping,
    k_token_stride,
    k_head_stride,
    v_token_stride,
    v_head_stride,
    block_stride,
    k_offset,
    v_offset,
    kv_heads: tl.constexpr,
    block_size: tl.constexpr,
    k_dim: tl.constexpr,
    v_dim: tl.constexpr,
    heads: tl.constexpr,
    width: tl.constexpr,
):
    """One program: some heads of a token."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slot_mapping + token).to(tl.int64)
    if slot < 0:
        return
    head = tl.program_id(1) * heads + tl.arange(0, heads)[:, None]
    dim = tl.arange(0, width)[None, :]
    block = memory + slot // block_size * block_stride
    row = head * block_size + slot % block_size
    is_k = (head < kv_heads) & (dim < k_dim)
    k = tl.load(key + token * k_token_stride + head * k_head_stride + dim, mask=is_k)
    is_v = (head < kv_heads) & (dim < v_dim)
    v = tl.load(value + token * v_token_stride + head * v_head_stride + dim, mask=is_v)
    tl.store(block + k_offset + row * k_dim + dim, k, mask=is_k)
    tl.store(block + v_offset + row * v_dim + dim, v, mask=is_v)


@triton.jit
def _rows_of(
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
def _attend_keys(
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
        k = _rows_of(at_k, 0, k_main, k_dim, is_real, is_masked, upcast)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee")
        if k_rest > 0:
            k = _rows_of(at_k, k_main, k_rest, k_dim, is_real, is_masked, upcast)
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
        v = _rows_of(at_v, 0, v_width, v_dim, is_real, is_masked, upcast)
        totals = totals * shrink[:, None]
        totals = tl.dot(weights.to(v.dtype), v, totals, input_precision="ieee")
        largest = larger
    return totals, largest, sums


@triton.jit(do_not_specialize=_VARYING, do_not_specialize_on_alignment=_INDICES)
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
    q = _rows_of(at_q, 0, k_main, k_dim, is_real, True, upcast)
    q_rest = q
    if k_rest > 0:
        q_rest = _rows_of(at_q, k_main, k_rest, k_dim, is_real, True, upcast)
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
        totals, largest, sums = _attend_keys(
            totals, largest, sums, q, q_rest, positions,
            memory, table, start, middle, begin, end,
            block_stride, k_offset + kv_head * block_size * k_dim,
            v_offset + kv_head * block_size * v_dim, scale, cap, window,
            block_size, k_dim, v_dim, k_main, k_rest, v_width, keys,
            has_window, has_cap, False, upcast,
        )  # fmt: skip
        start = middle
    totals, largest, sums = _attend_keys(
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


@triton.jit
def _piece_of(
    program,
    lengths,
    num_sequences,
    num_more,
    window,
    keys: tl.constexpr,
    has_window: tl.constexpr,
    sequences: tl.constexpr,
):
    """Which piece of which sequence a program has: the sequence, which of its pieces, and
    how many it has. The last is 0 for programs beyond the last piece.

    Every program finds out by itself, from all lengths: a graph that was recorded once
    serves sequences of any lengths, and nothing has to be planned before it.
    """
    each = tl.arange(0, sequences)
    is_real = each < num_sequences
    length = tl.load(lengths + each, mask=is_real, other=0)
    begin = tl.zeros([sequences], tl.int32)
    if has_window:
        begin = tl.maximum(length - window, 0) // keys * keys
    num_tiles = tl.cdiv(length - begin, keys)
    longest = tl.maximum(tl.cdiv(tl.sum(num_tiles, 0), num_more), 1)
    counts = tl.where(is_real, tl.maximum(tl.cdiv(num_tiles, longest), 1), 0)
    ends = tl.cumsum(counts, 0)
    sequence = tl.sum((ends <= program).to(tl.int32), 0)
    is_ours = each == sequence
    count = tl.sum(tl.where(is_ours, counts, 0), 0)
    piece = program - tl.sum(tl.where(is_ours, ends - counts, 0), 0)
    return sequence, piece, count


@triton.jit(do_not_specialize=_VARYING, do_not_specialize_on_alignment=_INDICES)
def _decode_kernel(
    query,
    output,
    partial,
    partial_sums,
    arrived,
    memory,
    block_tables,
    lengths,
    num_sequences,
    num_more,
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
    slices: tl.constexpr,
    sequences: tl.constexpr,
):
    """One program: some query heads of a KV head over one piece of a sequence's keys.

    Of a sequence that has several pieces each leaves its sum of weighted values in
    `partial` [num_pieces, num_heads, v_dim], and in [.., 2] the largest score and the sum
    of weights. Whoever comes last makes the answer of them.
    """
    program = tl.program_id(1)
    sequence, piece, count = _piece_of(
        program, lengths, num_sequences, num_more, window, keys, has_window, sequences
    )
    if count == 0:
        return
    kv_head = tl.program_id(0) // slices
    length = tl.load(lengths + sequence)
    row = tl.program_id(0) % slices * rows + tl.arange(0, rows)
    is_real = row < group
    head = kv_head * group + row
    at_q = query + sequence.to(tl.int64) * q_token_stride + head * q_head_stride
    q = _rows_of(at_q, 0, k_main, k_dim, is_real, True, upcast)
    q_rest = q
    if k_rest > 0:
        q_rest = _rows_of(at_q, k_main, k_rest, k_dim, is_real, True, upcast)
    begin = 0
    if has_window:
        begin = tl.maximum(length - window, 0)
    aligned = begin // keys * keys
    num_tiles = tl.cdiv(length - aligned, keys)
    start = aligned + piece * num_tiles // count * keys
    stop = tl.minimum(aligned + (piece + 1) * num_tiles // count * keys, length)
    table = block_tables + sequence.to(tl.int64) * table_stride
    totals, largest, sums = _attend_keys(
        tl.zeros([rows, v_width], tl.float32),
        tl.full([rows], float("-inf"), tl.float32),
        tl.zeros([rows], tl.float32),
        q, q_rest, tl.zeros([rows], tl.int32) + (length - 1),
        memory, table, start, stop, begin, length,
        block_stride, k_offset + kv_head * block_size * k_dim,
        v_offset + kv_head * block_size * v_dim, scale, cap, window,
        block_size, k_dim, v_dim, k_main, k_rest, v_width, keys,
        has_window, has_cap, True, upcast,
    )  # fmt: skip
    num_heads = tl.num_programs(0) // slices * group
    is_last = count == 1
    if count > 1:
        mine = program * num_heads + head
        _leave(
            partial, partial_sums, mine, totals, largest, sums, is_real, v_dim, v_width
        )
        tl.debug_barrier()  # what all threads wrote comes before this thread's word
        place = arrived + sequence * tl.num_programs(0) + tl.program_id(0)
        is_last = tl.atomic_add(place, 1, sem="acq_rel") == count - 1
        if is_last:
            tl.store(place, 0)
            first = (program - piece) * num_heads + head
            totals, sums = _gathered(
                partial, partial_sums, first, num_heads, count, is_real,
                v_dim, rows, v_width,
            )  # fmt: skip
    if is_last:
        totals /= tl.where(sums == 0, 1.0, sums)[:, None]
        dim = tl.arange(0, v_width)
        at = output + (sequence.to(tl.int64) * num_heads + head)[:, None] * v_dim
        mask = is_real[:, None] & (dim < v_dim)[None, :]
        tl.store(at + dim[None, :], totals.to(output.dtype.element_ty), mask=mask)


@triton.jit
def _leave(
    partial,
    partial_sums,
    at,
    totals,
    largest,
    sums,
    is_real,
    v_dim: tl.constexpr,
    v_width: tl.constexpr,
):
    """Write what one piece gave for some heads, of [rows, v_width] and [rows]."""
    dim = tl.arange(0, v_width)
    mask = is_real[:, None] & (dim < v_dim)[None, :]
    tl.store(partial_sums + at * 2, largest, mask=is_real)
    tl.store(partial_sums + at * 2 + 1, sums, mask=is_real)
    tl.store(partial + at[:, None] * v_dim + dim[None, :], totals, mask=mask)


@triton.jit
def _gathered(
    partial,
    partial_sums,
    first,
    num_heads,
    count,
    is_real,
    v_dim: tl.constexpr,
    rows: tl.constexpr,
    v_width: tl.constexpr,
):
    """What all pieces of a sequence give together: [rows, v_width] and [rows].

    Four at a time are on their way from the second-level cache, where other
    multiprocessors left them.
    """
    of_all = tl.full([rows], float("-inf"), tl.float32)
    for start in range(0, count, 4):
        for more in tl.static_range(4):
            is_piece = is_real & (start + more < count)
            at = partial_sums + (first + (start + more) * num_heads) * 2
            largest = tl.load(
                at, mask=is_piece, other=float("-inf"), cache_modifier=".cg"
            )
            of_all = tl.maximum(of_all, largest)
    known = tl.where(of_all == float("-inf"), 0.0, of_all)
    totals = tl.zeros([rows, v_width], tl.float32)
    sums = tl.zeros([rows], tl.float32)
    dim = tl.arange(0, v_width)
    for start in range(0, count, 4):
        for more in tl.static_range(4):
            is_piece = is_real & (start + more < count)
            at = first + (start + more) * num_heads
            largest = tl.load(
                partial_sums + at * 2, mask=is_piece, other=float("-inf"),
                cache_modifier=".cg",
            )  # fmt: skip
            of_piece = tl.load(
                partial_sums + at * 2 + 1, mask=is_piece, other=0.0,
                cache_modifier=".cg",
            )  # fmt: skip
            values = tl.load(
                partial + at[:, None] * v_dim + dim[None, :],
                mask=is_piece[:, None] & (dim < v_dim)[None, :], other=0.0,
                cache_modifier=".cg",
            )  # fmt: skip
            weight = tl.exp2(largest - known)
            sums += of_piece * weight
            totals += values * weight[:, None]
    return totals, sums
