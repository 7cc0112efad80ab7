"""The operations of a step as numbers, and the kernel that runs them all.

One call for a whole step: no Python between two operations, and no thread that waits
for another to be woken. Threads take tasks one at a time, so one that is kept from its
core delays a step by a task at most; and they go on to the next operation while others
are still at this one, if it does not need what they compute.
"""

from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
from numba import carray, prange

from engine.atomics import current, fetch_add, relax, sched_yield
from engine.compiled import compiled
from engine.compressed import (
    compressed_tile,
    gated_compressed_tile,
    linear_compressed_tile,
)
from engine.compressed_panels import (
    gated_compressed_slice,
    linear_compressed_slice,
    num_compressed_slices,
)
from engine.int8 import (
    INT8_TILE,
    dequantize_row,
    gated_int8_tile,
    linear_int8_tile,
)
from engine.kernel import LayerBlocks, Rule, attend_tile, store
from engine.matmul import bits_at, gated_tile, linear_tile, num_tiles
from engine.panels import gated_slice, linear_slice, num_panels, num_slices, pack_panel
from engine.rows import add_row, copy_row, gate_rows, normalize_row, rotate_token

Array = Any
MANY_TASKS = 128  # more than that are taken several at a time
PATIENCE = 2000  # turns of a waiting loop before it lets others use the core
# To pass a program and a place on takes longer than a short task.
inlined = compiled(forceinline=True)


class Kind(IntEnum):
    """What an operation does, and its numbers: addresses first, then sizes.

    The last address is written, but for STORE, which writes into the blocks.
    """

    LINEAR = 0  # x, weight, bias, y; inputs, outputs
    GATED_LINEAR = 1  # x, gate, up, y; inputs, outputs, curve
    NORMALIZE = 2  # x, weight, y; dim; epsilon, offset
    ADD = 3  # a, b, y; dim
    ROTATE = 4  # x, cos, sin, y; heads, dim
    STORE = 5  # key, value; heads, k_head_dim, v_head_dim, k_offset, v_offset
    ATTEND = 6  # query, y; heads, k_head_dim, v_head_dim, k_offset, v_offset,
    #             kv_heads, window; scaling, softcap
    GATE = 7  # gate, up, y; dim, curve
    LINEAR_INT8 = 8  # x, weight, scale, bias, y; inputs, outputs
    GATED_LINEAR_INT8 = (
        9  # x, gate, its scale, up, its scale, y; inputs, outputs, curve
    )
    DEQUANTIZE = 10  # weight, scale, y; inputs
    PACK = 11  # x, packed; inputs
    LINEAR_PACKED = 12  # as LINEAR, of packed rows
    GATED_LINEAR_PACKED = 13  # as GATED_LINEAR, of packed rows
    PICK = 14  # x, y; dim, which rows: an `Index`
    PUT = 15  # x, y; dim
    LINEAR_COMPRESSED = 16  # as LINEAR; inputs, outputs, bytes of a row of weights
    GATED_LINEAR_COMPRESSED = (
        17  # as GATED_LINEAR; inputs, outputs, such bytes of gate, of up, curve
    )
    LINEAR_COMPRESSED_PACKED = 18  # as LINEAR_COMPRESSED, of packed rows
    GATED_LINEAR_COMPRESSED_PACKED = 19  # as GATED_LINEAR_COMPRESSED, of packed rows


class Index(IntEnum):
    """Rows of a matrix that a step names."""

    SAMPLED = 0  # tokens that are sampled
    TOKEN_IDS = 1  # of an embedding


class Unit(IntEnum):
    """What the rows of an operation are as many as, or a multiple of."""

    ONE = 0
    TOKENS = 1
    SAMPLED = 2


_LINEAR, _GATED, _NORMALIZE, _ADD, _ROTATE, _STORE, _ATTEND, _GATE = range(8)
_LINEAR_INT8, _GATED_INT8, _DEQUANTIZE = range(8, 11)
_PACK, _LINEAR_PACKED, _GATED_PACKED, _PICK, _PUT = range(11, 16)
_LINEAR_COMPRESSED, _GATED_COMPRESSED = range(16, 18)
_LINEAR_COMPRESSED_PACKED, _GATED_COMPRESSED_PACKED = range(18, len(Kind))
_ONE, _TOKENS, _SAMPLED = range(len(Unit))
_SAMPLED_ROWS = 0
NUM_NUMBERS, NUM_CONSTANTS = 10, 2


class Program(NamedTuple):
    """Operations in order; their tasks may be done side by side."""

    kinds: Array  # [n] int64
    units: Array  # [n] int64
    rows: Array  # [n] int64: how many of each unit
    after: Array  # [n] int64: the last operation that has to be done before; or -1
    numbers: Array  # [n, NUM_NUMBERS] int64
    constants: Array  # [n, NUM_CONSTANTS] float64
    begun: Array  # [n] int64: tasks taken, by whomever
    done: Array  # [n] int64


def program_of(count: int) -> Program:
    """Room for so many operations, each after the one before."""
    kinds, units, rows, begun, done = (np.zeros(count, np.int64) for _ in range(5))
    return Program(
        kinds,
        units,
        rows,
        np.arange(count) - 1,
        np.zeros((count, NUM_NUMBERS), np.int64),
        np.zeros((count, NUM_CONSTANTS), np.float64),
        begun,
        done,
    )


class Place(NamedTuple):
    """The tokens of a step and where they belong; int64, as `engine.batch.Batch`."""

    memory: Array  # [num_blocks, elements of a block], uint16
    block_size: int
    token_ids: Array
    slot_mapping: Array
    block_tables: Array
    tiles: Array
    sampled_tiles: Array
    last_rows: Array


_NO_INDEX, _NO_TABLE = np.zeros(0, np.int64), np.zeros((0, 0), np.int64)
NOWHERE = Place(
    np.zeros((0, 0), np.uint16),
    1,
    _NO_INDEX,
    _NO_INDEX,
    _NO_TABLE,
    _NO_TABLE,
    _NO_TABLE,
    _NO_INDEX,
)


@compiled(parallel=True, nogil=True)
def run(program: Program, place: Place, num_threads: int) -> None:
    """All operations, each after what it needs, on so many threads."""
    program.begun[:] = 0
    program.done[:] = 0
    for _ in prange(num_threads):
        cleared = -1  # the last operation that is known to be done, as all before it
        for operation in range(program.kinds.shape[0]):
            while cleared < program.after[operation]:
                cleared += 1
                _wait_for(program, place, cleared)
            _take_part(program, place, operation)


@inlined
def _wait_for(program: Program, place: Place, operation: int) -> None:
    total = _num_tasks(program, place, operation)
    turns = 0
    while current(program.done, operation) < total:
        turns += 1
        if turns < PATIENCE:
            relax()
        else:
            sched_yield()


@inlined
def _take_part(program: Program, place: Place, operation: int) -> None:
    """Do tasks of an operation while there are some."""
    total = _num_tasks(program, place, operation)
    at_once = total // MANY_TASKS + 1
    first = 0
    while first < total and current(program.begun, operation) < total:
        first = fetch_add(program.begun, operation, at_once)
        end = min(first + at_once, total)
        if first < end:
            rows = _num_rows(program, place, operation)
            for task in range(first, end):
                _do(program, place, operation, (rows, task))
            fetch_add(program.done, operation, end - first)


@inlined
def _num_rows(program: Program, place: Place, operation: int) -> int:
    unit, rows = program.units[operation], program.rows[operation]
    if unit == _TOKENS:
        return int(rows * len(place.token_ids))
    if unit == _SAMPLED:
        return int(rows * len(place.last_rows))
    return int(rows)


@inlined
def _num_tasks(program: Program, place: Place, operation: int) -> int:
    """Into how many parts an operation is cut."""
    kind, n = program.kinds[operation], program.numbers[operation]
    rows = count = _num_rows(program, place, operation)
    if kind in (_LINEAR, _GATED):
        count = num_tiles(n[5]) * min(rows, 1)
    elif kind == _LINEAR_INT8:
        count = num_tiles(n[6], INT8_TILE) * min(rows, 1)
    elif kind == _GATED_INT8:
        count = num_tiles(n[7], INT8_TILE) * min(rows, 1)
    elif kind in (_LINEAR_COMPRESSED, _GATED_COMPRESSED):
        count = num_tiles(n[5], compressed_tile(n[6])) * min(rows, 1)
    elif kind in (_LINEAR_COMPRESSED_PACKED, _GATED_COMPRESSED_PACKED):
        count = num_compressed_slices(rows, n[5])
    elif kind in (_LINEAR_PACKED, _GATED_PACKED):
        count = num_panels(rows) * num_slices(n[5])
    elif kind == _PACK:
        count = num_panels(rows)
    elif kind == _STORE:
        count = n[2]
    elif kind == _ATTEND:
        count = len(_tiles(program, place, operation)) * n[7]
    return int(count)


@inlined
def _tiles(program: Program, place: Place, operation: int) -> Array:
    is_all = program.units[operation] == _TOKENS
    return place.tiles if is_all else place.sampled_tiles


@inlined
def _do(program: Program, place: Place, operation: int, part: tuple[int, int]) -> None:
    kind = program.kinds[operation]
    n, c = program.numbers[operation], program.constants[operation]
    rows, task = part
    if kind == _LINEAR:
        linear_tile(n[0], n[1], n[2], n[3], (rows, n[4], n[5]), task)
    elif kind == _GATED:
        gated_tile(n[0], (n[1], n[2]), n[3], (rows, n[4], n[5]), n[6], task)
    elif kind == _NORMALIZE:
        normalize_row(n[0], n[1], n[2], (rows, n[3]), (c[0], c[1]), task)
    elif kind == _ADD:
        add_row(n[0], n[1], n[2], (rows, n[3]), task)
    elif kind == _ROTATE:
        rotate_token(n[0], n[3], (n[1], n[2]), (rows, n[4], n[5]), task)
    elif kind == _GATE:
        gate_rows(n[0], n[1], n[2], (rows, n[3]), n[4], task)
    elif kind == _LINEAR_INT8:
        linear_int8_tile(n[0], (n[1], n[2]), n[3], n[4], (rows, n[5], n[6]), task)
    elif kind == _GATED_INT8:
        gate, up, shape = (n[1], n[2]), (n[3], n[4]), (rows, n[6], n[7])
        gated_int8_tile(n[0], gate, up, n[5], shape, (n[8], task))
    elif kind == _DEQUANTIZE:
        dequantize_row(n[0], n[1], n[2], (rows, n[3]), task)
    elif kind == _PACK:
        pack_panel(n[0], n[1], (rows, n[2]), task)
    elif kind == _LINEAR_PACKED:
        linear_slice(n[0], n[1], n[2], n[3], (rows, n[4], n[5]), task)
    elif kind == _GATED_PACKED:
        gated_slice(n[0], (n[1], n[2]), n[3], (rows, n[4], n[5]), n[6], task)
    elif kind == _LINEAR_COMPRESSED:
        linear_compressed_tile(n[0], n[1], n[2], n[3], (rows, n[4], n[5], n[6]), task)
    elif kind == _GATED_COMPRESSED:
        gate, up = (n[1], n[6]), (n[2], n[7])
        gated_compressed_tile(n[0], gate, up, n[3], (rows, n[4], n[5]), (n[8], task))
    elif kind == _LINEAR_COMPRESSED_PACKED:
        linear_compressed_slice(n[0], n[1], n[2], n[3], (rows, n[4], n[5], n[6]), task)
    elif kind == _GATED_COMPRESSED_PACKED:
        gate, up = (n[1], n[6]), (n[2], n[7])
        gated_compressed_slice(n[0], gate, up, n[3], (rows, n[4], n[5]), (n[8], task))
    elif kind == _PICK:
        index = place.last_rows if n[3] == _SAMPLED_ROWS else place.token_ids
        copy_row(n[0], n[1], n[2], (index[task], task))
    elif kind == _PUT:
        copy_row(n[0], n[1], n[2], (task, place.last_rows[task]))
    elif kind == _STORE:
        _store(n, place, task)
    elif kind == _ATTEND:
        tiles = _tiles(program, place, operation)
        _attend(n, Rule(c[0], n[8], c[1]), place, tiles, task)


@compiled()
def _store(n: Array, place: Place, head: int) -> None:
    """Of all tokens, as those of one pair share its memory."""
    layer = LayerBlocks(place.memory, place.block_size, n[5], n[6])
    tokens = len(place.slot_mapping)
    keys = carray(bits_at(n[0]), (tokens, n[2], n[3]))
    values = carray(bits_at(n[1]), (tokens, n[2], n[4]))
    store(keys, values, layer, place.slot_mapping, head)


@compiled()
def _attend(n: Array, rule: Rule, place: Place, tiles: Array, task: int) -> None:
    # Head by head, so that threads divide heads first and tiles of one head last.
    kv_head, tile = divmod(task, len(tiles))
    table, start, count, position = tiles[tile]
    group, tokens = n[2] // n[7], len(place.token_ids)
    heads = slice(kv_head * group, (kv_head + 1) * group)
    query = carray(bits_at(n[0]), (tokens, n[2], n[3]))
    answer = carray(bits_at(n[1]), (tokens, n[2], n[4]))
    layer = LayerBlocks(place.memory, place.block_size, n[5], n[6])
    attend_tile(
        query[start : start + count, heads],
        answer[start : start + count, heads],
        (layer, place.block_tables[table], kv_head),
        position,
        rule,
    )
