"""Paged attention compiled for the CPU: one pass over the blocks, no gather.

The running maximum and sum of each softmax are those of Milakov & Gimelshein 2018
(arXiv 1805.02867, algorithm 3), the loop over tiles of keys is FlashAttention's (arXiv
2205.14135, algorithm 1), the block table PagedAttention's (arXiv 2309.06180, §4.1).
Everything is accumulated in float32. Knows arrays only; bfloat16 comes as uint16 bits.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import njit, prange

Array = Any  # numba sees numpy arrays; their dtypes are told in the docstrings


class LayerBlocks(NamedTuple):
    """One layer's K and V in the block memory."""

    memory: Array  # [num_blocks, elements of a block], float32 or uint16
    block_size: int
    k_offset: int  # elements from a block's start
    v_offset: int


class StepIndex(NamedTuple):
    """Where a step's tokens belong; int64, as `engine.batch.Batch` describes them."""

    slot_mapping: Array
    block_tables: Array
    tiles: Array


class Rule(NamedTuple):
    """How scores are formed; as `engine.attention.ScoreRule`."""

    scaling: float
    window: int
    softcap: float


class Running(NamedTuple):
    """A tile's softmax so far, one entry per query row; all float32."""

    greatest: Array  # [rows] greatest score seen
    total: Array  # [rows] sum of exp(score - greatest)
    answer: Array  # [rows, v_head_dim] sum of exp(score - greatest) x value


def _compiled(**options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile on first call, and keep the machine code on disk where that is possible.

    Sums may be reordered, which vectorises them. The flags that assume away infinities
    and NaN are left out: a broken value must stay visible, in its own row only.
    """
    options["fastmath"] = {"reassoc", "contract", "nsz"}

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            kernel = njit(cache=True, **options)(function)
        except RuntimeError:  # no writable folder anywhere: compile in each process
            kernel = njit(**options)(function)
        return kernel  # type: ignore[no-any-return]

    return decorate


@_compiled(parallel=True)
def paged_attention(
    new: tuple[Array, Array, Array],
    output: Array,
    layer: LayerBlocks,
    step: StepIndex,
    rule: Rule,
) -> None:
    """Store this step's K and V of one layer, then attend through the block tables.

    new is (query [num_tokens, num_heads, k_head_dim], key [num_tokens, num_kv_heads,
    k_head_dim], value [.., .., v_head_dim]), output [num_tokens, num_heads,
    v_head_dim]; all contiguous and of the dtype of the blocks' memory. Every KV head
    of every tile is a task of its own.
    """
    query, key, value = new
    _store(key, layer, layer.k_offset, step.slot_mapping)
    _store(value, layer, layer.v_offset, step.slot_mapping)
    num_tiles = step.tiles.shape[0]
    for task in prange(num_tiles * key.shape[1]):
        # Head by head, so that threads divide heads first and tiles of one head last.
        kv_head, tile = divmod(np.int64(task), num_tiles)
        table, start, count, position = step.tiles[tile]
        group = query.shape[1] // key.shape[1]
        heads = slice(kv_head * group, (kv_head + 1) * group)
        _attend_tile(
            query[start : start + count, heads],
            output[start : start + count, heads],
            (layer, step.block_tables[table], kv_head),
            position,
            rule,
        )


@_compiled()
def _store(new: Array, layer: LayerBlocks, offset: int, slot_mapping: Array) -> None:
    num_tokens, num_heads, dim = new.shape
    for token in range(num_tokens):
        block, row = divmod(slot_mapping[token], layer.block_size)
        for head in range(num_heads):
            first = offset + (head * layer.block_size + row) * dim
            layer.memory[block, first : first + dim] = new[token, head]


@_compiled()
def _attend_tile(
    query: Array,
    output: Array,
    paged: tuple[LayerBlocks, Array, int],
    position: int,
    rule: Rule,
) -> None:
    """Attend with `count` tokens of one sequence and the heads that share a KV head.

    query and output are [count, group, dim]; token i has position `position + i`.
    """
    layer, table, kv_head = paged
    count, group, k_dim = query.shape
    v_dim, size = output.shape[2], layer.block_size
    queries = _scaled(query, rule.scaling)
    running = Running(
        np.full(count * group, -np.inf, np.float32),
        np.zeros(count * group, np.float32),
        np.zeros((count * group, v_dim), np.float32),
    )
    keys = np.empty((size, k_dim), np.float32)
    values = np.empty((size, v_dim), np.float32)
    scores = np.empty(size, np.float32)
    first_seen = max(0, position - rule.window + 1) if rule.window > 0 else 0
    for index in range(first_seen // size, (position + count - 1) // size + 1):
        start = index * size
        # Slots after the last token hold what an earlier owner left: never read them.
        filled = min(size, position + count - start)
        block = layer.memory[table[index]]
        _load(block, layer.k_offset + kv_head * size * k_dim, keys[:filled])
        _load(block, layer.v_offset + kv_head * size * v_dim, values[:filled])
        for row in range(count * group):
            last = min(size, position + row // group + 1 - start)
            first = 0
            if rule.window > 0:
                first = max(0, position + row // group + 1 - rule.window - start)
            if first < last:
                seen = scores[first:last]
                _score(queries[row], keys[first:last], rule.softcap, seen)
                _absorb(seen, values[first:last], running, row)
    _finish(running, output)


@_compiled()
def _scaled(query: Array, scaling: float) -> Array:
    """[count, group, dim] as float32 [count x group, dim], scaled once for all keys."""
    count, group, dim = query.shape
    queries = np.empty((count * group, dim), np.float32)
    for token in range(count):
        for head in range(group):
            row = queries[token * group + head]
            _widen(query[token, head], row)
            for d in range(dim):
                row[d] *= np.float32(scaling)
    return queries


@_compiled()
def _load(block: Array, offset: int, rows: Array) -> None:
    """Read rows of one head, which lie next to each other, as float32."""
    _widen(block[offset : offset + rows.size], rows.reshape(rows.size))


@_compiled()
def _score(query: Array, keys: Array, softcap: float, scores: Array) -> None:
    for j in range(scores.shape[0]):
        score = np.float32(0.0)
        for d in range(query.shape[0]):
            score += query[d] * keys[j, d]
        scores[j] = score
    if softcap > 0.0:
        for j in range(scores.shape[0]):
            scores[j] = softcap * np.tanh(scores[j] / softcap)


@_compiled()
def _absorb(scores: Array, values: Array, running: Running, row: int) -> None:
    """Take the scores of one more block of keys into a query row's softmax."""
    answer, before, peak = running.answer[row], running.greatest[row], scores.max()
    if before == -np.inf and peak == -np.inf:
        return  # every key so far has weight zero, and exp(-inf + inf) is no weight
    greatest = max(before, peak)
    running.greatest[row] = greatest
    _exponentials(scores, greatest)
    if before != greatest:
        shrink = np.exp(before - greatest)
        running.total[row] *= shrink
        answer *= shrink
    running.total[row] += scores.sum()
    _add_weighted(scores, values, answer)


@_compiled()
def _add_weighted(weights: Array, values: Array, answer: Array) -> None:
    """answer += weights @ values, four keys for each time the answer is touched."""
    for j in range(weights.shape[0]):
        for d in range(answer.shape[0]):
            answer[d] += weights[j] * values[j, d]


@_compiled()
def _exponentials(scores: Array, greatest: float) -> None:
    """exp(score - greatest) in place, by arithmetic that vectorises; libm's does not.

    2^y = 2^n 2^f with n the nearest whole number: 2^n is an exponent's bits, 2^f its
    Taylor polynomial, off by 1.2e-7. NaN stays NaN; below 2^-126 a weight is zero.
    """
    for j in range(scores.shape[0]):
        y = (scores[j] - greatest) * np.float32(1.4426950408889634)
        n = np.floor(y + np.float32(0.5))
        f = y - n
        power = np.float32(1.5403530e-4)
        power = power * f + np.float32(1.3333558e-3)
        power = power * f + np.float32(9.6181291e-3)
        power = power * f + np.float32(5.5504109e-2)
        power = power * f + np.float32(2.4022651e-1)
        power = power * f + np.float32(6.9314718e-1)
        power = power * f + np.float32(1.0)
        bits = (np.int32(n) + np.int32(127)) << np.int32(23)
        weight = power * np.int32(bits).view(np.float32)
        scores[j] = np.float32(0.0) if y < np.float32(-126.0) else weight


@_compiled()
def _finish(running: Running, output: Array) -> None:
    count, group, dim = output.shape
    for token in range(count):
        for head in range(group):
            row = token * group + head
            for d in range(dim):
                running.answer[row, d] /= running.total[row]
            _narrow(running.answer[row], output[token, head])


@_compiled()
def _widen(source: Array, target: Array) -> None:
    """Copy into float32; bfloat16 is the upper half of a float32."""
    if source.itemsize == 2:
        words = target.view(np.uint32)
        for i in range(source.shape[0]):
            words[i] = np.uint32(source[i]) << np.uint32(16)
    else:
        for i in range(source.shape[0]):
            target[i] = source[i]


@_compiled()
def _narrow(source: Array, target: Array) -> None:
    """Copy from float32, to bfloat16 by rounding to nearest even; NaN stays NaN."""
    if target.itemsize == 2:
        words = source.view(np.uint32)
        for i in range(source.shape[0]):
            odd = (words[i] >> np.uint32(16)) & np.uint32(1)
            rounded = words[i] + np.uint32(0x7FFF) + odd
            if source[i] != source[i]:
                rounded = words[i] | np.uint32(0x400000)
            target[i] = rounded >> np.uint32(16)
    else:
        for i in range(source.shape[0]):
            target[i] = source[i]
