"""The operations of a step as numbers, and the kernel that runs them all.

One call for a whole step: no Python between two operations, and no thread that waits
for another to be woken. Threads take tasks one at a time, so one that is kept from its
core delays a step by a task at most: who waits for it does that one, too (`engine.task`).
And they go on to the next operation while others are still at this one, if it does not
need what they compute.
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
from engine.kernel import LayerBlocks, Rule, attend_tile, heads_at_once, store
from engine.matmul import bits_at, gated_tile, linear_tile, num_tiles
from engine.panels import gated_slice, linear_slice, num_panels, num_slices, pack_panel
from engine.rows import add_row, copy_row, gate_rows, normalize_row, rotate_token
from engine.task import Task, alone, is_put

Array = Any
MANY_TASKS = 128  # more than that are taken several at a time
# Turns of a waiting loop, for each eight tokens of a step. No task takes that long: its
# thread was taken off its core.
HELP_AFTER = 500
TOKENS_AT_ONCE = 8
PATIENCE = 2000  # then it lets others use the core
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
# Tasks that put what they computed all at once, at their end.
_TWICE = (
    *(_LINEAR, _GATED, _LINEAR_INT8, _GATED_INT8, _LINEAR_PACKED, _GATED_PACKED),
    *(_LINEAR_COMPRESSED, _GATED_COMPRESSED, _ATTEND),
    *(_LINEAR_COMPRESSED_PACKED, _GATED_COMPRESSED_PACKED),
)
_ONE, _TOKENS, _SAMPLED = range(len(Unit))
_SAMPLED_ROWS = 0
NUM_NUMBERS, NUM_CONSTANTS = 10, 2
MANY_THREADS = 1 << 20  # for which operations are cut into as many tasks as can be


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
    # Of tasks that may be done twice: in which run they were last put.
    claims: Array  # int64, of one operation after the other
    first_claims: Array  # [n] int64: where those of an operation start; -1: it has none
    num_runs: Array  # [1] int64


def program_of(count: int) -> Program:
    """Room for so many operations, each after the one before, and nobody helps."""
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
        np.zeros(0, np.int64),
        np.full(count, -1),
        np.zeros(1, np.int64),
    )


class Place(NamedTuple):
    """The tokens of a step and where they belong; int64, as `engine.batch.Batch`.

    And how many threads compute it.
    """

    memory: Array  # [num_blocks, elements of a block], uint16
    block_size: int
    token_ids: Array
    slot_mapping: Array
    block_tables: Array
    tiles: Array
    sampled_tiles: Array
    last_rows: Array
    num_threads: int


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
    1,
)


def with_claims(program: Program, tokens: int, sampled: int) -> Program:
    """For steps of at most so many tokens: threads help with each other's tasks."""
    largest = NOWHERE._replace(
        token_ids=np.zeros(tokens, np.int64),
        last_rows=np.zeros(sampled, np.int64),
        tiles=np.zeros((tokens, 0), np.int64),
        sampled_tiles=np.zeros((sampled, 0), np.int64),
        num_threads=MANY_THREADS,
    )
    counts = _num_claims(program, largest)
    ends = np.cumsum(counts)
    return program._replace(
        claims=np.zeros(counts.sum(), np.int64),
        first_claims=np.where(counts, ends - counts, -1),
    )


@compiled()
def _num_claims(program: Program, place: Place) -> Array:
    """Tasks of each operation that two may do; their answers are put at once."""
    counts = np.zeros(len(program.kinds), np.int64)
    for operation in range(len(counts)):
        if program.kinds[operation] in _TWICE:
            counts[operation] = _num_tasks(program, place, operation)
    return counts


@compiled(parallel=True, nogil=True)
def run(program: Program, place: Place) -> None:
    """All operations, each after what it needs."""
    program.begun[:] = 0
    program.done[:] = 0
    program.num_runs[0] += 1
    for _ in prange(place.num_threads):
        cleared = -1  # the last operation that is known to be done, as all before it
        operation = 0
        while operation < program.kinds.shape[0]:
            mine, again = operation, cleared < program.after[operation]
            if again:
                mine = cleared + 1
                if _is_done(program, place, mine):
                    cleared = mine
                    continue
            _take_part(program, place, mine, again)
            if again:
                sched_yield()
            else:
                operation += 1


@inlined
def _is_done(program: Program, place: Place, operation: int) -> bool:
    """Wait until it is; False if it takes long, and can be helped with."""
    total = _num_tasks(program, place, operation)
    patience = HELP_AFTER * (1 + len(place.token_ids) // TOKENS_AT_ONCE)
    turns = 0
    while current(program.done, operation) < total:
        turns += 1
        if turns == patience and program.first_claims[operation] >= 0:
            return False
        if turns < PATIENCE:
            relax()
        else:
            sched_yield()
    return True


@inlined
def _take_part(program: Program, place: Place, operation: int, again: bool) -> None:
    """Do tasks of an operation while there are some that nobody has taken.

    Or, `again`, those that others have taken and not put yet.
    """
    total = _num_tasks(program, place, operation)
    rows = _num_rows(program, place, operation)
    at_once = total if again else total // MANY_TASKS + 1
    first = 0
    while first < total and (again or current(program.begun, operation) < total):
        first = 0 if again else fetch_add(program.begun, operation, at_once)
        end = min(first + at_once, total)
        num_put = 0
        for number in range(first, end):
            task = _task(program, operation, number)
            if not is_put(task) and _do(program, place, operation, (rows, task)):
                num_put += 1
        fetch_add(program.done, operation, num_put)
        if again:
            break


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
        heads = n[7] // _heads_at_once(n, place)
        count = len(_tiles(program, place, operation)) * heads
    return int(count)


@inlined
def _tiles(program: Program, place: Place, operation: int) -> Array:
    is_all = program.units[operation] == _TOKENS
    return place.tiles if is_all else place.sampled_tiles


@inlined
def _heads_at_once(n: Array, place: Place) -> int:
    """Of a task that attends. Of prompts one: their tiles find its keys in cache."""
    if len(place.tiles) < len(place.token_ids):
        return 1
    head_bytes = (n[3] + n[4]) * place.memory.itemsize
    return int(heads_at_once(n[7], head_bytes, len(place.tiles), place.num_threads))


@inlined
def _do(program: Program, place: Place, operation: int, part: tuple[int, Task]) -> bool:
    """One task, of so many rows; False if another thread was faster."""
    kind = program.kinds[operation]
    n, c = program.numbers[operation], program.constants[operation]
    rows, task = part
    number = task.number
    is_mine = True
    if kind == _LINEAR:
        is_mine = linear_tile(n[0], n[1], n[2], n[3], (rows, n[4], n[5]), task)
    elif kind == _GATED:
        shape = rows, n[4], n[5]
        is_mine = gated_tile(n[0], (n[1], n[2]), n[3], shape, n[6], task)
    elif kind == _NORMALIZE:
        normalize_row(n[0], n[1], n[2], (rows, n[3]), (c[0], c[1]), number)
    elif kind == _ADD:
        add_row(n[0], n[1], n[2], (rows, n[3]), number)
    elif kind == _ROTATE:
        rotate_token(n[0], n[3], (n[1], n[2]), (rows, n[4], n[5]), number)
    elif kind == _GATE:
        gate_rows(n[0], n[1], n[2], (rows, n[3]), n[4], number)
    elif kind == _LINEAR_INT8:
        shape = rows, n[5], n[6]
        is_mine = linear_int8_tile(n[0], (n[1], n[2]), n[3], n[4], shape, task)
    elif kind == _GATED_INT8:
        gate, up, shape = (n[1], n[2]), (n[3], n[4]), (rows, n[6], n[7])
        is_mine = gated_int8_tile(n[0], gate, up, n[5], shape, (n[8], task))
    elif kind == _DEQUANTIZE:
        dequantize_row(n[0], n[1], n[2], (rows, n[3]), number)
    elif kind == _PACK:
        pack_panel(n[0], n[1], (rows, n[2]), number)
    elif kind == _LINEAR_PACKED:
        is_mine = linear_slice(n[0], n[1], n[2], n[3], (rows, n[4], n[5]), task)
    elif kind == _GATED_PACKED:
        shape = rows, n[4], n[5]
        is_mine = gated_slice(n[0], (n[1], n[2]), n[3], shape, n[6], task)
    elif kind == _LINEAR_COMPRESSED:
        sizes = rows, n[4], n[5], n[6]
        is_mine = linear_compressed_tile(n[0], n[1], n[2], n[3], sizes, task)
    elif kind == _GATED_COMPRESSED:
        gate, up, shape = (n[1], n[6]), (n[2], n[7]), (rows, n[4], n[5])
        is_mine = gated_compressed_tile(n[0], gate, up, n[3], shape, (n[8], task))
    elif kind == _LINEAR_COMPRESSED_PACKED:
        sizes = rows, n[4], n[5], n[6]
        is_mine = linear_compressed_slice(n[0], n[1], n[2], n[3], sizes, task)
    elif kind == _GATED_COMPRESSED_PACKED:
        gate, up, shape = (n[1], n[6]), (n[2], n[7]), (rows, n[4], n[5])
        is_mine = gated_compressed_slice(n[0], gate, up, n[3], shape, (n[8], task))
    elif kind == _PICK:
        index = place.last_rows if n[3] == _SAMPLED_ROWS else place.token_ids
        copy_row(n[0], n[1], n[2], (index[number], number))
    elif kind == _PUT:
        copy_row(n[0], n[1], n[2], (number, place.last_rows[number]))
    elif kind == _STORE:
        _store(n, place, number)
    elif kind == _ATTEND:
        tiles = _tiles(program, place, operation)
        is_mine = _attend(n, Rule(c[0], n[8], c[1]), place, tiles, task)
    return is_mine


@inlined
def _task(program: Program, operation: int, number: int) -> Task:
    first = program.first_claims[operation]
    if first < 0:
        return alone(number)
    address = program.claims.ctypes.data + (first + number) * program.claims.itemsize
    return Task(number, address, program.num_runs[0])


@compiled()
def _store(n: Array, place: Place, head: int) -> None:
    """Of all tokens, as those of one pair share its memory."""
    layer = LayerBlocks(place.memory, place.block_size, n[5], n[6])
    tokens = len(place.slot_mapping)
    keys = carray(bits_at(n[0]), (tokens, n[2], n[3]))
    values = carray(bits_at(n[1]), (tokens, n[2], n[4]))
    store(keys, values, layer, place.slot_mapping, head)


@compiled()
def _attend(n: Array, rule: Rule, place: Place, tiles: Array, task: Task) -> bool:
    # Head by head, so that threads divide heads first and tiles of one head last.
    at_once = _heads_at_once(n, place)
    number, tile = divmod(task.number, len(tiles))
    table, start, count, position = tiles[tile]
    tokens, of_one = len(place.token_ids), at_once * (n[2] // n[7])
    heads = slice(number * of_one, (number + 1) * of_one)
    query = carray(bits_at(n[0]), (tokens, n[2], n[3]))
    answer = carray(bits_at(n[1]), (tokens, n[2], n[4]))
    layer = LayerBlocks(place.memory, place.block_size, n[5], n[6])
    return attend_tile(
        query[start : start + count, heads],
        answer[start : start + count, heads],
        (layer, place.block_tables[table], (number * at_once, at_once)),
        position,
        rule,
        task,
    )
