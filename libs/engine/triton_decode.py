"""Attention of decode: one token of each sequence, long sequences in pieces of their keys.

A Triton kernel over `engine.triton_keys`. A long sequence is attended by several programs,
each over a piece of its keys, as in Flash-Decoding (pytorch.org/blog/flash-decoding). The
longer it is beside the others of its step, the more pieces it has, so that no program works
on alone when the others are done.
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

_FULL = 2  # programs that each multiprocessor should have
_FEW_SEQUENCES = 64  # one kernel serves all steps of so many
# Numbers that differ from step to step: one kernel serves them all, and none is compiled
# while a request waits.
_VARYING = ("table_stride", "num_sequences", "num_more")


def num_more_pieces(num_kv_heads: int, num_sms: int) -> int:
    """How many pieces of keys a step may have beyond one of each sequence: 1 or more.

    So many that they alone give each multiprocessor about two programs.
    """
    return max(1, round(_FULL * num_sms / num_kv_heads))


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
    rows = min(num_rows_of(group), tiling.rows)
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
        *strides_of(query, layer, block_tables),
        *numbers_of(rule),
        **constants_of(query, layer, rule),
        **sizes_of(tiling, rows),
        slices=slices,
        sequences=max(_FEW_SEQUENCES, triton.next_power_of_2(num_sequences)),
    )
    return output


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


@triton.jit(
    do_not_specialize=_VARYING,
    do_not_specialize_on_alignment=("block_tables", "lengths"),
)
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
    q = rows_of(at_q, 0, k_main, k_dim, is_real, True, upcast)
    q_rest = q
    if k_rest > 0:
        q_rest = rows_of(at_q, k_main, k_rest, k_dim, is_real, True, upcast)
    begin = 0
    if has_window:
        begin = tl.maximum(length - window, 0)
    aligned = begin // keys * keys
    num_tiles = tl.cdiv(length - aligned, keys)
    start = aligned + piece * num_tiles // count * keys
    stop = tl.minimum(aligned + (piece + 1) * num_tiles // count * keys, length)
    table = block_tables + sequence.to(tl.int64) * table_stride
    totals, largest, sums = attend_keys(
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
