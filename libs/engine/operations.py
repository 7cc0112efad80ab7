"""What each kind of operation computes: a task of it, as machine code at an address.

Kinds that share code are a family, and a family is machine code of its own: numba makes
that of whatever a function calls once more for each function above it. What runs a step
knows of families their addresses alone (`call`), and they are compiled side by side.
"""

from enum import IntEnum
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic

from engine.compiled import compiled, inlined
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
from engine.int8 import INT8_TILE, dequantize_row, gated_int8_tile, linear_int8_tile
from engine.kernel import LayerBlocks, Rule, attend_tile, heads_at_once, store
from engine.matmul import gated_tile, linear_tile, num_tiles
from engine.panels import gated_slice, linear_slice, num_panels, num_slices, pack_panel
from engine.place import Place, place_at
from engine.rows import add_row, copy_row, gate_rows, normalize_row, rotate_token
from engine.task import Task
from engine.vectors import pointer_like, pointer_to

Array = Any
NUM_NUMBERS, NUM_CONSTANTS = 10, 2


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
    STORE_FLOAT32 = 20  # as STORE
    ATTEND_FLOAT32 = 21  # as ATTEND


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
_LINEAR_COMPRESSED_PACKED, _GATED_COMPRESSED_PACKED = range(18, 20)
_STORE_FLOAT32, _ATTEND_FLOAT32 = range(20, len(Kind))
# Tasks that put what they computed all at once, at their end.
TWICE = (
    *(_LINEAR, _GATED, _LINEAR_INT8, _GATED_INT8, _LINEAR_PACKED, _GATED_PACKED),
    *(_LINEAR_COMPRESSED, _GATED_COMPRESSED, _ATTEND, _ATTEND_FLOAT32),
    *(_LINEAR_COMPRESSED_PACKED, _GATED_COMPRESSED_PACKED),
)
_ONE, _TOKENS, _SAMPLED = range(len(Unit))
_SAMPLED_ROWS = 0


@inlined
def num_rows(unit: int, rows: int, place: Place) -> int:
    if unit == _TOKENS:
        return int(rows * len(place.token_ids))
    if unit == _SAMPLED:
        return int(rows * len(place.last_rows))
    return int(rows)


@inlined
def num_tasks(kind: int, unit: int, rows: int, n: Array, place: Place) -> int:
    """Into how many parts an operation of so many rows is cut; n are its numbers."""
    count = rows
    if kind in (_LINEAR, _GATED):
        count = num_tiles(n[5]) * min(rows, 1)
    elif kind == _LINEAR_INT8:
        count = num_tiles(n[6], INT8_TILE) * min(rows, 1)
    elif kind == _GATED_INT8:
        count = num_tiles(n[7], INT8_TILE) * min(rows, 1)
    elif kind in (_LINEAR_COMPRESSED, _GATED_COMPRESSED):
        count = num_tiles(n[5], compressed_tile(n[5], n[6])) * min(rows, 1)
    elif kind in (_LINEAR_COMPRESSED_PACKED, _GATED_COMPRESSED_PACKED):
        count = num_compressed_slices(rows, n[5])
    elif kind in (_LINEAR_PACKED, _GATED_PACKED):
        count = num_panels(rows) * num_slices(n[5])
    elif kind == _PACK:
        count = num_panels(rows)
    elif kind in (_STORE, _STORE_FLOAT32):
        count = n[2]
    elif kind in (_ATTEND, _ATTEND_FLOAT32):
        heads = _heads_of_task(n, place, 4 if kind == _ATTEND_FLOAT32 else 2)
        count = len(_tiles(place, unit)) * (n[7] // heads)
    return int(count)


@inlined
def _tiles(place: Place, unit: int) -> Array:
    """Those that attend."""
    return place.tiles if unit == _TOKENS else place.sampled_tiles


@inlined
def _heads_of_task(n: Array, place: Place, element_bytes: int) -> int:
    """KV heads of a task that attends. Of prompts one: their tiles find its keys in cache."""
    if len(place.tiles) < len(place.token_ids):
        return 1
    head_bytes = (n[3] + n[4]) * element_bytes
    return int(heads_at_once(n[7], head_bytes, len(place.tiles), place.num_threads))


class Part(NamedTuple):
    """A task of an operation, as a family is called with it; int64."""

    kind: int
    unit: int
    rows: int
    numbers: int  # where they are: NUM_NUMBERS int64
    constants: int  # NUM_CONSTANTS float64
    place: int  # what `engine.place.describe` wrote
    number: int  # this and the rest as of `Task`
    claim: int
    run: int


_numbers_at, _constants_at = pointer_to(types.int64), pointer_to(types.float64)
_NUM_FIELDS = len(Part._fields)


@inlined
def _operation(address: int) -> tuple[Part, Array, Task]:
    """What a family is called with, an operation's numbers, and which task of it."""
    p = carray(_numbers_at(address), _NUM_FIELDS)
    part = Part(p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7], p[8])
    numbers = carray(_numbers_at(part.numbers), NUM_NUMBERS)
    return part, numbers, Task(part.number, part.claim, part.run)


@inlined
def _constants(part: Part) -> Array:
    return carray(_constants_at(part.constants), NUM_CONSTANTS)


@compiled()
def rows_of_tokens(address: int) -> int:
    """A row, or a few, in one pass: nobody computes such a task twice."""
    part, n, _ = _operation(address)
    kind, rows, number, c = part.kind, part.rows, part.number, _constants(part)
    if kind == _NORMALIZE:
        normalize_row(n[0], n[1], n[2], (rows, n[3]), (c[0], c[1]), number)
    elif kind == _ADD:
        add_row(n[0], n[1], n[2], (rows, n[3]), number)
    elif kind == _ROTATE:
        rotate_token(n[0], n[3], (n[1], n[2]), (rows, n[4], n[5]), number)
    elif kind == _GATE:
        gate_rows(n[0], n[1], n[2], (rows, n[3]), n[4], number)
    elif kind == _DEQUANTIZE:
        dequantize_row(n[0], n[1], n[2], (rows, n[3]), number)
    elif kind == _PACK:
        pack_panel(n[0], n[1], (rows, n[2]), number)
    elif kind == _PICK:
        place = place_at(part.place)
        index = place.last_rows if n[3] == _SAMPLED_ROWS else place.token_ids
        copy_row(n[0], n[1], n[2], (index[number], number))
    elif kind == _PUT:
        last_rows = place_at(part.place).last_rows
        copy_row(n[0], n[1], n[2], (number, last_rows[number]))
    return 1


@compiled()
def products(address: int) -> int:
    """Of few rows, with bfloat16."""
    part, n, task = _operation(address)
    shape = part.rows, n[4], n[5]
    if part.kind == _LINEAR:
        return int(linear_tile(n[0], n[1], n[2], n[3], shape, task))
    return int(gated_tile(n[0], (n[1], n[2]), n[3], shape, n[6], task))


@compiled()
def int8_products(address: int) -> int:
    part, n, task = _operation(address)
    if part.kind == _LINEAR_INT8:
        shape = part.rows, n[5], n[6]
        return int(linear_int8_tile(n[0], (n[1], n[2]), n[3], n[4], shape, task))
    gate, up, shape = (n[1], n[2]), (n[3], n[4]), (part.rows, n[6], n[7])
    return int(gated_int8_tile(n[0], gate, up, n[5], shape, (n[8], task)))


@compiled()
def compressed_products(address: int) -> int:
    part, n, task = _operation(address)
    if part.kind == _LINEAR_COMPRESSED:
        sizes = part.rows, n[4], n[5], n[6]
        return int(linear_compressed_tile(n[0], n[1], n[2], n[3], sizes, task))
    gate, up, shape = (n[1], n[6]), (n[2], n[7]), (part.rows, n[4], n[5])
    return int(gated_compressed_tile(n[0], gate, up, n[3], shape, (n[8], task)))


@compiled()
def packed_products(address: int) -> int:
    part, n, task = _operation(address)
    shape = part.rows, n[4], n[5]
    if part.kind == _LINEAR_PACKED:
        return int(linear_slice(n[0], n[1], n[2], n[3], shape, task))
    return int(gated_slice(n[0], (n[1], n[2]), n[3], shape, n[6], task))


@compiled()
def compressed_packed_products(address: int) -> int:
    part, n, task = _operation(address)
    if part.kind == _LINEAR_COMPRESSED_PACKED:
        sizes = part.rows, n[4], n[5], n[6]
        return int(linear_compressed_slice(n[0], n[1], n[2], n[3], sizes, task))
    gate, up, shape = (n[1], n[6]), (n[2], n[7]), (part.rows, n[4], n[5])
    return int(gated_compressed_slice(n[0], gate, up, n[3], shape, (n[8], task)))


@compiled()
def attention(address: int) -> int:
    return _attention(address, np.uint16(0))


@compiled()
def float32_attention(address: int) -> int:
    return _attention(address, np.float32(0))


@compiled(inline="always")
def _attention(address: int, like: Any) -> int:
    """Over blocks of elements `like` this one, with rows of the same."""
    part, n, task = _operation(address)
    place = place_at(part.place)
    tokens = len(place.slot_mapping)
    first = carray(pointer_like(n[0], like), (tokens, n[2], n[3]))
    second = carray(pointer_like(n[1], like), (tokens, n[2], n[4]))
    halves = place.memory  # of float32; or bfloat16
    shape = len(halves), halves.shape[1] * halves.itemsize // first.itemsize
    memory = carray(pointer_like(halves.ctypes.data, like), shape)
    layer = LayerBlocks(memory, place.block_size, n[5], n[6])
    if part.kind in (_STORE, _STORE_FLOAT32):
        # Of all tokens, as those of one pair share its memory.
        store(first, second, layer, place.slot_mapping, part.number)
        return 1
    # Head by head, so that threads divide heads first and tiles of one head last.
    at_once = _heads_of_task(n, place, memory.itemsize)
    tiles = _tiles(place, part.unit)
    number, tile = divmod(part.number, len(tiles))
    table, start, count, position = tiles[tile]
    of_one, c = at_once * (n[2] // n[7]), _constants(part)
    heads = slice(number * of_one, (number + 1) * of_one)
    is_mine = attend_tile(
        first[start : start + count, heads],
        second[start : start + count, heads],
        (layer, place.block_tables[table], (number * at_once, at_once)),
        position,
        Rule(c[0], n[8], c[1]),
        task,
    )
    return int(is_mine)


FAMILIES = {
    rows_of_tokens: (_NORMALIZE, _ADD, _ROTATE, _GATE, _DEQUANTIZE, _PACK, _PICK, _PUT),
    products: (_LINEAR, _GATED),
    int8_products: (_LINEAR_INT8, _GATED_INT8),
    compressed_products: (_LINEAR_COMPRESSED, _GATED_COMPRESSED),
    packed_products: (_LINEAR_PACKED, _GATED_PACKED),
    compressed_packed_products: (_LINEAR_COMPRESSED_PACKED, _GATED_COMPRESSED_PACKED),
    attention: (_STORE, _ATTEND),
    float32_attention: (_STORE_FLOAT32, _ATTEND_FLOAT32),
}


@cache
def addresses() -> Array:
    """[len(Kind)] int64: where the machine code of each kind's family is."""
    where = np.zeros(len(Kind), np.int64)
    for family, kinds in FAMILIES.items():
        where[list(kinds)] = machine_code(family)
    return where


def machine_code(family: Any) -> int:
    """The address of a function int64 -> int64 as C calls it, compiled if it is not yet."""
    family.compile(types.int64(types.int64))
    done = family.overloads[(types.int64,)]
    return int(
        done.library.get_pointer_to_function(done.fndesc.llvm_cfunc_wrapper_name)
    )


@intrinsic
def call(typing: Any, function: Any, part: Any) -> Any:
    """Have the family at an address do a task, a `Part`; 0 if somebody else was faster."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        integer = ir.IntType(64)
        space = cgutils.alloca_once_value(builder, arguments[1])
        kind = ir.FunctionType(integer, [integer]).as_pointer()
        function = builder.inttoptr(arguments[0], kind)
        return builder.call(function, [builder.ptrtoint(space, integer)])

    return types.int64(types.int64, part), generate
