"""The operations of a decode step as numbers, and the kernel that runs them all.

One call for a whole step: no Python between two operations, and no thread that waits
for another to be woken. Threads take tasks one at a time, so one that is kept from its
core delays a step by a task at most.
"""

from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
from numba import carray, prange

from engine.atomics import current, fetch_add, relax, sched_yield
from engine.compiled import compiled
from engine.int8 import dequantize_row, gated_int8_tile, linear_int8_tile
from engine.kernel import LayerBlocks, Rule, attend_tile, store_keys, store_values
from engine.matmul import bits_at, gated_tile, linear_tile
from engine.rows import add_row, gate_rows, normalize_row, rotate_token

Array = Any
MANY_TASKS = 128  # more than that are taken several at a time
PATIENCE = 2000  # turns of a waiting loop before it lets others use the core


class Kind(IntEnum):
    """What an operation does, and its numbers: addresses first, then sizes."""

    LINEAR = 0  # x, weight, bias, y, rows, inputs, outputs
    GATED_LINEAR = 1  # x, gate, up, y, rows, inputs, outputs, curve
    NORMALIZE = 2  # x, weight, y, rows, dim; epsilon, offset
    ADD = 3  # a, b, y, rows, dim
    ROTATE = 4  # x, y, cos, sin, tokens, heads, dim
    STORE = 5  # key, value, tokens, heads, k_head_dim, v_head_dim, k_offset, v_offset
    ATTEND = 6  # query, y, tokens, heads, k_head_dim, v_head_dim, k_offset, v_offset,
    #             kv_heads, window; scaling, softcap
    GATE = 7  # gate, up, y, rows, dim, curve
    LINEAR_INT8 = 8  # x, weight, scale, bias, y, rows, inputs, outputs
    GATED_LINEAR_INT8 = (
        9  # x, gate, its scale, up, its scale, y, rows, inputs, outputs,
    )
    #                        curve
    DEQUANTIZE = 10  # weight, scale, y, outputs, inputs


_LINEAR, _GATED, _NORMALIZE, _ADD, _ROTATE, _STORE, _ATTEND, _GATE = range(8)
_LINEAR_INT8, _GATED_INT8, _DEQUANTIZE = range(8, len(Kind))
NUM_NUMBERS, NUM_CONSTANTS = 10, 2


class Program(NamedTuple):
    """Operations in order; their tasks may be done side by side."""

    kinds: Array  # [n] int64
    tasks: Array  # [n] int64: how many each has
    numbers: Array  # [n, NUM_NUMBERS] int64
    constants: Array  # [n, NUM_CONSTANTS] float64
    begun: Array  # [n] int64: tasks taken, by whomever
    done: Array  # [n] int64


def program_of(count: int) -> Program:
    """Room for so many operations."""
    whole = [np.zeros(count, np.int64) for _ in range(4)]
    return Program(
        whole[0],
        whole[1],
        np.zeros((count, NUM_NUMBERS), np.int64),
        np.zeros((count, NUM_CONSTANTS), np.float64),
        *whole[2:],
    )


class Place(NamedTuple):
    """Where the tokens of a step belong, one of each sequence; int64."""

    memory: Array  # [num_blocks, elements of a block], uint16
    block_size: int
    slot_mapping: Array  # [tokens]
    block_tables: Array  # [tokens, longest table]
    positions: Array  # [tokens]


_NO_INDEX, _NO_TABLE = np.zeros(0, np.int64), np.zeros((0, 0), np.int64)
NOWHERE = Place(np.zeros((0, 0), np.uint16), 1, _NO_INDEX, _NO_TABLE, _NO_INDEX)


@compiled(parallel=True, nogil=True)
def run(program: Program, place: Place, num_threads: int) -> None:
    """All operations, one after the other, on so many threads."""
    program.begun[:] = 0
    program.done[:] = 0
    for _ in prange(num_threads):
        for operation in range(program.kinds.shape[0]):
            _take_part(program, place, operation)


@compiled()
def _take_part(program: Program, place: Place, operation: int) -> None:
    """Do tasks of an operation while there are some, then wait for the others'."""
    total = program.tasks[operation]
    at_once = total // MANY_TASKS + 1
    while current(program.done, operation) < total:
        first = fetch_add(program.begun, operation, at_once)
        end = min(first + at_once, total)
        if first < end:
            for task in range(first, end):
                _do(program, place, operation, task)
            fetch_add(program.done, operation, end - first)
            continue
        turns = 0
        while current(program.done, operation) < total:
            turns += 1
            if turns < PATIENCE:
                relax()
            else:
                sched_yield()


@compiled()
def _do(program: Program, place: Place, operation: int, task: int) -> None:
    kind = program.kinds[operation]
    n, c = program.numbers[operation], program.constants[operation]
    if kind == _LINEAR:
        linear_tile(n[0], n[1], n[2], n[3], (n[4], n[5], n[6]), task)
    elif kind == _GATED:
        gated_tile(n[0], (n[1], n[2]), n[3], (n[4], n[5], n[6]), n[7], task)
    elif kind == _NORMALIZE:
        normalize_row(n[0], n[1], n[2], (n[3], n[4]), (c[0], c[1]), task)
    elif kind == _ADD:
        add_row(n[0], n[1], n[2], (n[3], n[4]), task)
    elif kind == _ROTATE:
        rotate_token(n[0], n[1], (n[2], n[3]), (n[4], n[5], n[6]), task)
    elif kind == _GATE:
        gate_rows(n[0], n[1], n[2], (n[3], n[4]), n[5], task)
    elif kind == _LINEAR_INT8:
        linear_int8_tile(n[0], (n[1], n[2]), n[3], n[4], (n[5], n[6], n[7]), task)
    elif kind == _GATED_INT8:
        gate, up, shape = (n[1], n[2]), (n[3], n[4]), (n[6], n[7], n[8])
        gated_int8_tile(n[0], gate, up, n[5], shape, (n[9], task))
    elif kind == _DEQUANTIZE:
        dequantize_row(n[0], n[1], n[2], (n[3], n[4]), task)
    elif kind == _STORE:
        _store(n, place, task)
    elif kind == _ATTEND:
        _attend(n, Rule(c[0], n[9], c[1]), place, task)


@compiled()
def _store(n: Array, place: Place, token: int) -> None:
    layer = LayerBlocks(place.memory, place.block_size, n[6], n[7])
    slots = place.slot_mapping[token : token + 1]
    keys = carray(bits_at(n[0]), (n[2], n[3], n[4]))
    values = carray(bits_at(n[1]), (n[2], n[3], n[5]))
    heads = 0, n[3]
    store_keys(keys[token : token + 1], layer, slots, heads)
    store_values(values[token : token + 1], layer, slots, heads)


@compiled()
def _attend(n: Array, rule: Rule, place: Place, task: int) -> None:
    kv_head, token = divmod(task, n[2])
    group = n[3] // n[8]
    heads = slice(kv_head * group, (kv_head + 1) * group)
    query = carray(bits_at(n[0]), (n[2], n[3], n[4]))
    answer = carray(bits_at(n[1]), (n[2], n[3], n[5]))
    layer = LayerBlocks(place.memory, place.block_size, n[6], n[7])
    attend_tile(
        query[token : token + 1, heads],
        answer[token : token + 1, heads],
        (layer, place.block_tables[token], kv_head),
        place.positions[token],
        rule,
    )
