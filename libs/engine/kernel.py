"""Paged attention compiled for the CPU: one pass over the blocks, no gather.

The loop over tiles of keys is FlashAttention's (arXiv 2205.14135, algorithm 1), the block
table PagedAttention's (arXiv 2309.06180, §4.1), the softmax in `softmax.py`.
Everything is accumulated in float32. Knows arrays only; bfloat16 comes as uint16 bits.
"""

from typing import Any, NamedTuple

import numpy as np

from engine.compiled import compiled
from engine.emitter import LANES
from engine.four import COLUMNS, FOUR, IN_A_PASS, Starts, answer_four, score_four
from engine.softmax import Running, Sight, finish, seen_by, weigh
from engine.task import Task, claims
from engine.vectors import (
    EVERYTHING,
    FIRST,
    SECOND,
    Part,
    moved,
    multiply_add,
    prefetch,
    start_of,
)

# Keys scored between two updates of the softmax: few enough that they stay in the second
# cache, with their values, and with what is asked for meanwhile: what follows.
KEYS_AT_ONCE = 64
KEYS_OF_PROMPTS = 128  # many rows: each costs as much to update
BYTES_AT_ONCE = 1 << 16  # of K and V, of all heads of a task
TASKS_PER_THREAD = 4  # at least: the last ones are not waited for long

Array = Any  # numba sees numpy arrays; their dtypes are told in the docstrings


class LayerBlocks(NamedTuple):
    """One layer's K and V in the block memory."""

    memory: Array  # [num_blocks, elements of a block], float32 or uint16
    block_size: int
    k_offset: int  # elements from a block's start
    v_offset: int


class Rule(NamedTuple):
    """How scores are formed; as `engine.attention.ScoreRule`."""

    scaling: float
    window: int
    softcap: float


class Head(NamedTuple):
    """Where one KV head's part of each block lies, in elements (see `vectors`).

    Those of the next head follow: all keys of a layer, then all its values.
    """

    memory: Any  # where it starts
    block_elements: int
    block_size: int
    packed: int
    first_key: int  # from a block's start
    num_keys: int  # elements
    first_value: int
    num_values: int


class Run(NamedTuple):
    """Some blocks of a head, for a product, and what it asks for meanwhile.

    Both are where a piece of each block starts, a head's keys or its values, in elements.
    What is asked for is the next product's; of the one after it where products take long,
    so that memory is never waited for.
    """

    head: Head
    num_blocks: int
    starts: Array  # int64
    asked: Array


@compiled()
def store(
    keys: Array, values: Array, layer: LayerBlocks, slot_mapping: Array, kv_head: int
) -> None:
    """One KV head's K and V of a step, a pair of bfloat16 at a time."""
    size, packed = layer.block_size, _packed(layer.memory)
    k_dim, v_dim = keys.shape[2], values.shape[2]
    depth = -(-k_dim // packed)
    head = _head_of(layer, kv_head, (depth * packed, v_dim))
    for token in range(len(slot_mapping)):
        block, slot = divmod(slot_mapping[token], size)
        start = block * head.block_elements
        first = start + head.first_key + slot
        if packed == 1:
            for d in range(k_dim):
                head.memory[first + d * size] = keys[token, kv_head, d]
        else:
            for at in range(k_dim // 2):
                low = keys[token, kv_head, 2 * at]
                high = keys[token, kv_head, 2 * at + 1]
                head.memory[first + at * size] = _pair(low, high)
            if k_dim < 2 * depth:
                last = keys[token, kv_head, k_dim - 1]
                head.memory[first + (depth - 1) * size] = _pair(last, 0)
        first = start + head.first_value + slot // packed * v_dim
        if packed == 1:
            for d in range(v_dim):
                head.memory[first + d] = values[token, kv_head, d]
        elif slot % 2 == 0:
            # What follows in the pair is computed later, and until then a number.
            for d in range(v_dim):
                head.memory[first + d] = _pair(values[token, kv_head, d], 0)
        else:
            for d in range(v_dim):
                before = np.uint32(head.memory[first + d]) & np.uint32(FIRST)
                head.memory[first + d] = _pair(before, values[token, kv_head, d])


@compiled()
def _pair(first: Any, second: Any) -> Any:
    """Two bfloat16 as one element."""
    return np.uint32(first) | (np.uint32(second) << np.uint32(16))


@compiled()
def _packed(memory: Array) -> int:
    """How many values an element of a product has: pairs of bfloat16."""
    return int(4 // memory.itemsize)


@compiled()
def heads_at_once(
    num_heads: int, head_bytes: int, num_tiles: int, num_threads: int
) -> int:
    """KV heads of a task, of tiles with one token each; `head_bytes` are a token's.

    As many as can be, so that memory is read in a row.
    """
    for at_once in range(num_heads, 1, -1):
        tasks = num_heads // at_once * num_tiles
        is_even = num_heads % at_once == 0 and tasks >= TASKS_PER_THREAD * num_threads
        if is_even and at_once * KEYS_AT_ONCE * head_bytes <= BYTES_AT_ONCE:
            return at_once
    return 1


@compiled()
def attend_tile(
    query: Array,
    output: Array,
    paged: tuple[LayerBlocks, Array, tuple[int, int]],
    position: int,
    rule: Rule,
    task: Task,
) -> bool:
    """Attend with `count` tokens of one sequence and the heads that share some KV heads.

    query and output are [count, heads, dim]; token i has position `position + i`. Paged
    are (blocks, the sequence's table, (first KV head, how many)). False if somebody else
    had put the answer.
    """
    layer, table, (kv_head, num_heads) = paged
    count, group, size = query.shape[0], query.shape[1] // num_heads, layer.block_size
    v_dim, num_rows = output.shape[2], count * group
    queries = _rows(query, num_heads, _packed(layer.memory))
    dims = queries.shape[2], v_dim
    greatest = np.full((num_heads, num_rows), -np.inf, np.float32)
    total = np.zeros((num_heads, num_rows), np.float32)
    answer = np.zeros((num_heads, num_rows, v_dim), np.float32)
    at_once = max(1, (KEYS_AT_ONCE if count == 1 else KEYS_OF_PROMPTS) // size)
    scores = np.empty((num_rows, at_once * size), np.float32)
    weights = np.empty(scores.shape, query.dtype)
    scaling = np.float32(1.0 if rule.softcap > 0.0 else rule.scaling)
    num_blocks = (position + count - 1) // size + 1
    first = _first_seen(position, rule) // size
    blocks = table[first : min(first + at_once, num_blocks)]
    keys_at, keys_after = np.zeros((2, at_once), np.int64)
    values_at, values_after = np.zeros((2, at_once), np.int64)
    head = _head_of(layer, kv_head, dims)
    _place(keys_at, blocks, head, head.first_key)
    _place(values_at, blocks, head, head.first_value)
    for i in range(len(blocks)):
        _ask(head, keys_at[i])
        _ask(head, values_at[i])
    while first < num_blocks:
        sight = Sight(position - first * size, count, group, rule.window)
        first += at_once
        following = table[first : max(first, min(first + at_once, num_blocks))]
        keys = len(blocks) * size, scaling
        for i in range(num_heads):
            running = Running(greatest[i], total[i], answer[i])
            head = _head_of(layer, kv_head + i, dims)
            after = _head_of(layer, kv_head + (i + 1) % num_heads, dims)
            later = blocks if i + 1 < num_heads else following
            _place(keys_after, later, after, after.first_key)
            _place(values_after, later, after, after.first_value)
            asked = (values_at, keys_after) if IN_A_PASS else (keys_after, values_after)
            run = Run(head, len(blocks), keys_at, asked[0])
            _score(queries[i], run, rule, scores)
            weigh(scores, weights, sight, keys, running)
            run = Run(head, len(blocks), values_at, asked[1])
            _add_values(weights, run, sight, answer[i])
            keys_at, keys_after = keys_after, keys_at
            values_at, values_after = values_after, values_at
        blocks = following
    if not claims(task):
        return False
    for i in range(num_heads):
        running = Running(greatest[i], total[i], answer[i])
        finish(running, output[:, i * group : (i + 1) * group])
    return True


@compiled()
def _place(starts: Array, blocks: Array, head: Head, first: int) -> None:
    """Where this lies in each block.

    What is there of more blocks stays: it was asked for before.
    """
    for i in range(len(blocks)):
        starts[i] = blocks[i] * head.block_elements + first


@compiled()
def _ask(head: Head, start: int) -> None:
    """For a whole piece."""
    prefetch(head.memory, start, max(head.num_keys, head.num_values))


@compiled()
def _rows(query: Array, num_heads: int, packed: int) -> Array:
    """[count, heads, dim] as [KV heads, rows, dim], the dim filled up with zeros."""
    count, num_queries, dim = query.shape
    group = num_queries // num_heads
    shape = num_heads, count * group, -(-dim // packed) * packed
    rows = np.zeros(shape, query.dtype)
    for token in range(count):
        for number in range(num_queries):
            head, row = divmod(number, group)
            for d in range(dim):
                rows[head, token * group + row, d] = query[token, number, d]
    return rows


@compiled()
def _first_seen(position: int, rule: Rule) -> int:
    """The first key that a query at this position may see."""
    return max(0, position - rule.window + 1) if rule.window > 0 else 0


@compiled()
def _head_of(layer: LayerBlocks, kv_head: int, dims: tuple[int, int]) -> Head:
    """Where a KV head lies; dims are (of keys, rounded up, of values)."""
    packed, size = _packed(layer.memory), layer.block_size
    num_keys, num_values = dims[0] * size // packed, dims[1] * size // packed
    return Head(
        start_of(layer.memory),
        layer.memory.shape[1] // packed,
        size,
        packed,
        layer.k_offset // packed + kv_head * num_keys,
        num_keys,
        layer.v_offset // packed + kv_head * num_values,
        num_values,
    )


@compiled()
def _score(queries: Array, run: Run, rule: Rule, scores: Array) -> None:
    """Every query row with every slot of the blocks, what it may not see included.

    Still to be scaled, unless there is a cap, which needs them scaled.
    """
    head, num_blocks, starts, asked = run
    size = head.block_size
    num_rows, depth = queries.shape[0], queries.shape[1] // head.packed
    left = Part(start_of(queries), 0, depth)
    out = Part(start_of(scores), 0, scores.shape[1])
    memory = Part(head.memory, 0, size)
    done = 0
    if size == LANES:
        done = num_blocks - num_blocks % FOUR
        for i in range(0, done, FOUR):
            some = moved(out, 0, i * size)
            places = _four(starts, i), _four(asked, i)
            score_four(some, left, memory, places, (num_rows, depth))
    if done < num_blocks:
        scores[:, done * size :] = 0.0
    for i in range(done, num_blocks):
        _ask(head, asked[i])
        keys = Part(head.memory, starts[i], size)
        some = moved(out, 0, i * size)
        multiply_add(some, left, keys, (num_rows, depth, size), EVERYTHING)
    if rule.softcap > 0.0:
        cap = np.float32(rule.softcap)
        factor = np.float32(rule.scaling) / cap
        for row in range(num_rows):
            for j in range(num_blocks * size):
                scores[row, j] = cap * np.tanh(scores[row, j] * factor)


@compiled()
def _four(starts: Array, i: int) -> Starts:
    """The i-th and those after it."""
    return Starts(starts[i], starts[i + 1], starts[i + 2], starts[i + 3])


@compiled()
def _add_values(weights: Array, run: Run, sight: Sight, answer: Array) -> None:
    """answer += weights @ values, never touching a value that a row does not see."""
    head, num_blocks, starts, asked = run
    all_from, _ = seen_by(sight, sight.num_tokens - 1)
    _, all_to = seen_by(sight, 0)
    whole_from, whole_to = -(-all_from // head.block_size), all_to // head.block_size
    whole_to = min(whole_to, num_blocks) if answer.shape[1] % COLUMNS == 0 else 0
    i = 0
    while i < num_blocks:
        if whole_from <= i and i + FOUR <= whole_to:
            places = _four(starts, i), _four(asked, i)
            _add_four(weights, i, (head, *places), answer)
            i += FOUR
            continue
        _ask(head, asked[i])
        _add_block(weights, i, (head, starts[i]), sight, answer)
        i += 1


@compiled()
def _add_four(
    weights: Array, i: int, places: tuple[Head, Starts, Starts], answer: Array
) -> None:
    """The values of four blocks that every row sees, the i-th and those after it.

    Places are (head, of these, of what is asked for).
    """
    rows, dim = answer.shape
    head, values, later = places
    depth = head.block_size // head.packed
    out = Part(start_of(answer), 0, dim)
    left = Part(start_of(weights), i * depth, weights.shape[1] // head.packed)
    memory = Part(head.memory, 0, dim)
    for column in range(0, dim, COLUMNS):
        here = _further(values, column), _further(later, column * depth)
        some = moved(out, 0, column)
        answer_four(some, left, memory, here, (rows, depth))


@compiled()
def _further(starts: Starts, by: int) -> Starts:
    one, two, three, four = starts
    return Starts(one + by, two + by, three + by, four + by)


@compiled()
def _add_block(
    weights: Array, i: int, place: tuple[Head, int], sight: Sight, answer: Array
) -> None:
    """Those of the i-th block, which lie at (head, first element)."""
    head, first = place
    dim, size, packed = answer.shape[1], head.block_size, head.packed
    all_from, _ = seen_by(sight, sight.num_tokens - 1)
    _, all_to = seen_by(sight, 0)
    out, values = Part(start_of(answer), 0, dim), Part(head.memory, first, dim)
    left = Part(start_of(weights), i * size // packed, weights.shape[1] // packed)
    start = i * size
    is_whole = all_from <= start and start + size <= all_to
    for token in range(1 if is_whole else sight.num_tokens):
        first, end = (start, start + size) if is_whole else seen_by(sight, token)
        seen = max(first - start, 0), min(end - start, size)
        rows = sight.num_tokens if is_whole else 1
        row = token * sight.group
        parts = moved(out, row, 0), moved(left, row, 0), values
        _add_some(parts, seen, (rows * sight.group, packed, dim))


@compiled()
def _add_some(
    parts: tuple[Part, Part, Part], seen: tuple[int, int], shape: tuple[int, int, int]
) -> None:
    """The values of some slots of a block, (from, to); shape is (rows, packed, dim)."""
    out, left, values = parts
    rows, packed, dim = shape
    first, end = -(-seen[0] // packed), seen[1] // packed
    for part in range(3):  # half a pair, whole pairs, half a pair
        if part == 0:
            at, depth, keep = first - 1, seen[0] % packed, SECOND
        elif part == 1:
            at, depth, keep = first, end - first, EVERYTHING
        else:
            at, depth, keep = end, seen[1] % packed, FIRST
        if depth > 0 and seen[0] < seen[1]:
            some = moved(left, 0, at), moved(values, at, 0)
            multiply_add(out, some[0], some[1], (rows, depth, dim), keep)
