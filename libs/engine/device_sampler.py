"""From logits to token ids where the logits are: one Triton kernel, a program per row.

Also run by Triton's interpreter (TRITON_INTERPRET=1 before the import). It knows
parameters and rows, no sequence, and chooses as `engine.sampler` does, with the same
uniform numbers; only rounding differs.

Nothing is sorted. All restrictions together come to one number for each row: its floor,
the lowest logit that may be drawn. How many tokens reach a floor, or how much they weigh
together, grows as it falls, so those of top_k and top_p are found by halving the range
of the logits' bits.

A row is read once for its greatest logit; twice more in all by a draw, which halves the
vocabulary; and by each of top_k and top_p at most 17 times where logits have 16 bits, 33
times where they have 32. It stays in the L2 cache.

Weights and their sums are float32, which is exact enough: a draw compares sums of two
disjoint ranges, where nothing cancels, and float64 would make a GPU's exponentials ten
times as slow. Each sum is of one row, by one program, in an order that follows from the
dtype and the vocabulary alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, log

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from engine.sampler import uniform
from protocol.sampling import SamplingParams

_TILE = 8192  # logits that a program holds at a time
_MAX_WARPS = 32
_ALIGNMENT = 16  # bytes of the widest load
# Low bits that are zero in every logit, once it is a float32.
_UNUSED_BITS = {torch.float32: 0, torch.float16: 13, torch.bfloat16: 16}
_NUM_PARAMETERS = 4  # of a row in the table: temperature, reach, top_k, top_p


@dataclass(frozen=True, slots=True)
class Table:
    """What a step asks of its rows, on their device.

    `rows` [4 + levels, num_rows] float64: the parameters, then uniform numbers. `banned`
    [2, n] int64: row and token of each that must not be drawn.
    """

    rows: Tensor
    banned: Tensor

    @classmethod
    def upload(
        cls,
        params: Sequence[SamplingParams],
        indices: Sequence[int],
        vocab_size: int,
        device: torch.device,
    ) -> "Table":
        """In one copy, which waits for nothing: the host's side of it is pinned."""
        rows = np.stack(
            [
                [p.temperature for p in params],
                [_reach(p) for p in params],
                [min(p.top_k, vocab_size) for p in params],
                [p.top_p for p in params],
                *_uniform(params, indices, vocab_size.bit_length()),
            ]
        )
        banned = _banned(params, indices, vocab_size)
        is_gpu = device.type == "cuda"
        staged = torch.empty(
            rows.size + banned.size, dtype=torch.float64, pin_memory=is_gpu
        )
        np.concatenate([rows.ravel(), banned.ravel()], out=staged.numpy())
        sent = staged.to(device, non_blocking=True)
        return cls(
            sent[: rows.size].view(rows.shape),
            sent[rows.size :].view(banned.shape).long(),
        )


@dataclass(frozen=True, slots=True)
class Choices:
    """On the device, [num_rows] each: int32 tokens, and the float32 floors they had."""

    tokens: Tensor
    floors: Tensor  # the lowest logit that could be drawn


def sample(
    logits: Tensor, params: Sequence[SamplingParams], indices: Sequence[int]
) -> list[int]:
    """Choose one token for each row, as `engine.sampler.sample`; waits only at the end.

    logits [num_rows, vocab_size] of float32, float16 or bfloat16, left as they are.
    Rows of nothing but -inf, or with +inf, are greedy; NaN is never chosen.
    """
    if not params:
        return []
    table = Table.upload(params, indices, logits.shape[1], logits.device)
    tokens: list[int] = choose(logits, table).tokens.tolist()
    return tokens


def choose(logits: Tensor, table: Table) -> Choices:
    """Choose one token for each row, waiting for nothing (see `sample`)."""
    num_rows, vocab_size = logits.shape
    # One layout of loads, and with it one order of sums, for all that a model computes.
    logits = logits.contiguous()
    if table.banned.shape[1] or logits.data_ptr() % _ALIGNMENT:
        logits = logits.clone()
    if table.banned.shape[1]:
        logits[table.banned[0], table.banned[1]] = -inf
    tokens = torch.empty(num_rows, dtype=torch.int32, device=logits.device)
    floors = torch.empty(num_rows, dtype=torch.float32, device=logits.device)
    tile = min(_TILE, triton.next_power_of_2(vocab_size))
    _choose_kernel[num_rows,](
        logits,
        table.rows,
        tokens,
        floors,
        num_rows,
        vocab_size=vocab_size,
        num_parameters=_NUM_PARAMETERS,
        unused_bits=_UNUSED_BITS[logits.dtype],
        tile=tile,
        num_warps=max(1, min(_MAX_WARPS, tile // 256)),
    )
    return Choices(tokens, floors)


def _reach(params: SamplingParams) -> float:
    """How far below the greatest logit min_p's floor is, at most 0."""
    return params.temperature * log(params.min_p) if params.min_p > 0.0 else -inf


def _uniform(
    params: Sequence[SamplingParams], indices: Sequence[int], num_levels: int
) -> list[NDArray[np.float64]]:
    seeds = np.array([p.seed for p in params], np.uint64)
    at = np.array(indices, np.uint64)
    return [uniform(seeds, at, level) for level in range(num_levels)]


def _banned(
    params: Sequence[SamplingParams], indices: Sequence[int], vocab_size: int
) -> NDArray[np.float64]:
    """Tokens that would end a sequence before its `min_tokens`, [2, n]: row, token."""
    pairs = [
        (row, token)
        for row, (p, index) in enumerate(zip(params, indices, strict=True))
        if index < p.min_tokens
        for token in p.stop_token_ids
        if token < vocab_size
    ]
    return np.array(pairs, np.float64).reshape(-1, 2).T


@triton.jit
def _load(row, start, vocab_size: tl.constexpr, tile: tl.constexpr):
    """Tokens from `start` on and their logits: -inf beyond the vocabulary."""
    token = start + tl.arange(0, tile)
    logits = tl.load(row + token, mask=token < vocab_size, other=float("-inf"))
    return token, logits.to(tl.float32)


@triton.jit
def _greatest(row, vocab_size: tl.constexpr, tile: tl.constexpr):
    """The greatest logit of a row and the lowest token that has it."""
    tops = tl.full((tile,), float("-inf"), tl.float32)
    tokens = tl.zeros((tile,), tl.int32)
    for start in range(0, vocab_size, tile):
        token, logits = _load(row, start, vocab_size, tile)
        is_greater = logits > tops
        tops = tl.where(is_greater, logits, tops)
        tokens = tl.where(is_greater, token, tokens)
    top = tl.max(tops, 0)
    return top, tl.min(tl.where(tops == top, tokens, vocab_size), 0)


@triton.jit
def _mass(
    row, first, end, floor, top, scale, vocab_size: tl.constexpr, tile: tl.constexpr
):
    """What the tokens in [first, end) whose logits reach the floor weigh together.

    Each weighs 2^((logit - top) x scale): at most 1, and at scale 0 always.
    """
    sums = tl.zeros((tile,), tl.float32)
    for start in range(first // tile * tile, end, tile):
        token, logits = _load(row, start, vocab_size, tile)
        is_counted = (token >= first) & (token < end) & (logits >= floor)
        # Subtracted before the product, which then cannot overflow upwards.
        sums += tl.where(is_counted, tl.exp2((logits - top) * scale), 0.0)
    return tl.sum(sums, 0)


@triton.jit
def _rank(logit, unused_bits: tl.constexpr):
    """A float32's place among all that have these low bits zero, from below; int64."""
    bits = logit.to(tl.int32, bitcast=True) >> unused_bits
    return (bits ^ ((bits >> 31) & (0x7FFFFFFF >> unused_bits))).to(tl.int64)


@triton.jit
def _at_rank(rank, unused_bits: tl.constexpr):
    """The float32 of a rank."""
    bits = rank.to(tl.int32)
    bits = bits ^ ((bits >> 31) & (0x7FFFFFFF >> unused_bits))
    return (bits << unused_bits).to(tl.float32, bitcast=True)


@triton.jit
def _raise(
    row,
    floor,
    held,
    top,
    scale,
    vocab_size: tl.constexpr,
    unused_bits: tl.constexpr,
    tile: tl.constexpr,
):
    """The highest floor, from this one on, at which the row still weighs `held`."""
    low, high = _rank(floor, unused_bits), _rank(top, unused_bits)
    while low < high:
        middle = low + (high - low + 1) // 2
        higher = tl.maximum(floor, _at_rank(middle, unused_bits))
        mass = _mass(row, 0, vocab_size, higher, top, scale, vocab_size, tile)
        is_held = mass >= held
        low = tl.where(is_held, middle, low)
        high = tl.where(is_held, high, middle - 1)
    return tl.maximum(floor, _at_rank(low, unused_bits))


@triton.jit
def _draw(
    row,
    numbers,
    num_rows,
    floor,
    top,
    scale,
    vocab_size: tl.constexpr,
    tile: tl.constexpr,
):
    """Halve the vocabulary until one token is left (see `engine.sampler`)."""
    low = tl.program_id(0) * 0
    high = low + vocab_size
    while high - low > 1:
        middle = (low + high) // 2
        left = _mass(row, low, middle, floor, top, scale, vocab_size, tile)
        right = _mass(row, middle, high, floor, top, scale, vocab_size, tile)
        left = left.to(tl.float64)
        is_left = tl.load(numbers) * (left + right) < left
        low = tl.where(is_left, low, middle)
        high = tl.where(is_left, middle, high)
        numbers += num_rows
    return low


@triton.jit(do_not_specialize=("num_rows",))
def _choose_kernel(
    logits,
    table,
    tokens,
    floors,
    num_rows,
    vocab_size: tl.constexpr,
    num_parameters: tl.constexpr,
    unused_bits: tl.constexpr,
    tile: tl.constexpr,
):
    """One program: a row."""
    at = tl.program_id(0)
    row = logits + at.to(tl.int64) * vocab_size
    table += at
    temperature = tl.load(table).to(tl.float32)
    top, token = _greatest(row, vocab_size, tile)
    floor = top
    if (temperature > 0.0) & (tl.abs(top) < float("inf")):
        scale = 1.4426950408889634 / tl.maximum(temperature, 1e-30)  # log2(e) / T
        floor = top + tl.load(table + num_rows).to(tl.float32)
        top_k = tl.load(table + 2 * num_rows)
        if (top_k > 0.0) & (top_k < vocab_size):
            floor = _raise(
                row, floor, top_k, top, 0.0, vocab_size, unused_bits, tile
            )  # fmt: skip
        top_p = tl.load(table + 3 * num_rows)
        if top_p < 1.0:
            whole = _mass(row, 0, vocab_size, floor, top, scale, vocab_size, tile)
            floor = _raise(
                row, floor, top_p * whole, top, scale, vocab_size, unused_bits, tile
            )
        numbers = table + num_parameters * num_rows
        token = _draw(row, numbers, num_rows, floor, top, scale, vocab_size, tile)
    tl.store(tokens + at, token)
    tl.store(floors + at, floor)
