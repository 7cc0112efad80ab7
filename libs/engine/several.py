"""Several rows times weights that are widened to float32 once for all of them.

For processors that cannot multiply bfloat16 by pairs. A few rows by themselves widen the
weights that they meet (`engine.matmul`); several would do so again and again, and rows
that leave the first cache come back for each output. Here a tile of rows by outputs stays
in registers while both pass, packed in the order in which they are read (Goto & van de
Geijn 2008, doi 10.1145/1356052.1356053). Sums are those of `engine.matmul` to the bit: a
row's answer does not depend on how many there are.

What is packed is [register][step][even, odd][row or output][lane]: a step is PAIRS
inputs, whose vectors are several registers, and one of each is all that there is room for.
"""

from collections.abc import Iterator
from itertools import islice, product
from typing import Any

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from engine.compiled import compiled
from engine.compression import GROUP, GROUP_BYTES, TABLE_BYTES
from engine.emitter import INT, LANES, PAIRS, REGISTER_LANES, Emitter, emit_alone
from engine.vectors import Part, moved, start_of

SEVERAL = 6  # rows from which this is faster
ROWS, OUTPUTS = 4, 3  # of a tile: with an operand of each it fills sixteen registers
RUN = 1024  # inputs whose weights are packed at once, to stay in the first cache
_REGISTERS = LANES // REGISTER_LANES
_OF_STEP = PAIRS // _REGISTERS  # values of one row and one register

Array = Any


@compiled()
def fill_by_several(sums: Array, left: Part, right: Part, depth: int) -> None:
    """sums[r, o] = left[r] . right[o] of bfloat16, of SEVERAL rows and OUTPUTS or more.

    `right` may be int8, or groups of `engine.compression` after their tables.
    """
    rows, width = sums.shape
    out = Part(start_of(sums), 0, width)
    some = _packed_rows(left, (rows, depth))
    weights = np.empty(RUN * OUTPUTS, np.float32)
    totals = np.empty((len(some) // _REGISTERS * ROWS, OUTPUTS * LANES), np.float32)
    for first in range(0, width, OUTPUTS):
        # The last tiles overlap others: what is put twice is the same.
        output = min(first, width - OUTPUTS)
        totals[:] = 0
        _add_products(totals, some, weights, moved(right, output, 0), depth)
        for row in range(0, len(totals), ROWS):
            place = moved(out, min(row, rows - ROWS), output)
            _put(place, _from(totals, row))


@compiled()
def _add_products(
    totals: Array, rows: Array, weights: Array, right: Part, depth: int
) -> None:
    """Add all rows times OUTPUTS outputs, [row, output, lane]; `weights` is scratch."""
    some = Part(start_of(weights), 0, len(weights) // _REGISTERS)
    size, groups = _elements_of_step(right), len(totals) // ROWS
    for first in range(0, depth, RUN):
        count, at = min(RUN, depth - first), first // PAIRS * size
        for output in range(OUTPUTS):
            place = moved(some, 0, output * REGISTER_LANES)
            _pack_weights(place, moved(right, output, at), count, at)
        num_steps = -(-count // PAIRS)
        # What memory is asked for meanwhile: the next inputs, or outputs.
        following = moved(right, 0, at + num_steps * size)
        if first + count == depth:
            following = moved(right, OUTPUTS, 0)
        for group in range(groups):
            _multiply(
                _from(totals, group * ROWS),
                _group_of(rows, group, first),
                some,
                moved(following, 0, group * num_steps * size // groups),
                (num_steps, size // groups),
            )


@compiled()
def _packed_rows(x: Part, shape: tuple[int, int]) -> Array:
    """All rows, [group of ROWS x register, ...]; shape is (rows, depth)."""
    rows, depth = shape
    groups, num_steps = -(-rows // ROWS), -(-depth // PAIRS)
    values = np.empty((groups * _REGISTERS, num_steps * ROWS * _OF_STEP), np.float32)
    for number in range(groups * ROWS):
        group, row = divmod(number, ROWS)
        place = moved(_group_of(values, group, 0), 0, row * REGISTER_LANES)
        _pack_row(place, moved(x, min(group * ROWS, rows - ROWS) + row, 0), depth, 0)
    return values


@compiled()
def _from(values: Array, row: int) -> Part:
    """What starts at a row; the caller keeps the array."""
    return Part(start_of(values), row * values.shape[1], values.shape[1])


@compiled()
def _group_of(rows: Array, group: int, first: int) -> Part:
    """A group from an input on, which starts a step."""
    return moved(_from(rows, group * _REGISTERS), 0, first // PAIRS * ROWS * _OF_STEP)


def _packing(count: int) -> Any:
    """Pack one of `count` rows, or outputs, side by side.

    Called with (out, row, depth, start): of bfloat16, int8, or groups of
    `engine.compression` that start so many bytes after the first of them.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        emit = Emitter(context, builder, signature)
        out, row = (emit.part(i, arguments[i]) for i in range(2))

        def put(vectors: tuple[Any, Any], step: Any) -> None:
            for odd, vector in enumerate(vectors):
                column = builder.mul(step, INT(count * _OF_STEP))
                column = builder.add(column, INT(odd * count * REGISTER_LANES))
                for i, some in enumerate(emit.registers(vector)):
                    emit.store(some, emit.at(out, INT(i), column), None)

        def widen(at: Any, masks: list[Any]) -> None:
            vectors = emit.load_halves(emit.at(row, INT(0), at), masks[0])
            put(vectors, builder.sdiv(at, INT(PAIRS)))

        def expand(at: Any, masks: list[Any]) -> None:
            group, step = (builder.sdiv(at, INT(size)) for size in (GROUP, PAIRS))
            column = builder.mul(group, INT(GROUP_BYTES))
            words = emit.load_coded(emit.at(row, INT(0), column), table)
            for i, some in enumerate(words):
                put(emit.halves(some), builder.add(step, INT(i)))

        depth, start = arguments[2:]
        if row[3] == types.uint8:
            before = builder.sub(INT(-TABLE_BYTES), start)
            table = emit.table(emit.at(row, INT(0), before))
            emit.by_steps(depth, GROUP, expand)
        else:
            emit.by_steps(depth, PAIRS, widen)
        return context.get_dummy_value()

    @intrinsic
    def call(typing: Any, out: Any, row: Any, depth: Any, start: Any) -> Any:
        return types.void(out, row, types.int64, types.int64), generate

    return call


_pack_row, _pack_weights = _packing(ROWS), _packing(OUTPUTS)


@intrinsic
def _elements_of_step(typing: Any, right: Any) -> Any:
    """How many elements of memory PAIRS weights are."""
    is_coded = right.types[0].dtype == types.uint8
    count = PAIRS * GROUP_BYTES // GROUP if is_coded else PAIRS
    return types.int64(right), lambda *_: INT(count)


@intrinsic
def _multiply(
    typing: Any, out: Any, left: Any, right: Any, following: Any, counts: Any
) -> Any:
    """out[row, output, lane] += products of a tile; counts are (steps, pace).

    Meanwhile memory is asked for what lies at `following`, `pace` elements a step.
    """

    def body(emit: Emitter, builder: Any, parts: list[Any], counts: Any) -> None:
        out, left, right, following = parts
        num_steps, pace = cgutils.unpack_tuple(builder, counts)
        for register in range(_REGISTERS):
            places = {
                (row, output): emit.at(out, INT(row), INT(output * LANES + first))
                for first in [register * REGISTER_LANES]
                for row, output in product(range(ROWS), range(OUTPUTS))
            }
            sums = {
                cell: cgutils.alloca_once_value(builder, emit.load_register(place))
                for cell, place in places.items()
            }
            with cgutils.for_range(builder, num_steps) as loop:
                ahead = builder.mul(loop.index, pace)
                for output in range(register, OUTPUTS, _REGISTERS):
                    emit.prefetch(emit.at(following, INT(output), ahead))
                rows = _values(emit, builder, (left, ROWS), register, loop.index)
                weights = _values(emit, builder, (right, OUTPUTS), register, loop.index)
                for _ in range(PAIRS // LANES):
                    _add(emit, builder, sums, rows, list(islice(weights, OUTPUTS)))
            for cell, place in places.items():
                emit.store(builder.load(sums[cell]), place, None)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        name = f"several.{signature.args[3].types[0].dtype}"
        emit_alone(context, builder, signature, arguments, name, body)
        return context.get_dummy_value()

    pair = types.UniTuple(types.int64, 2)
    return types.void(out, left, right, following, pair), generate


def _values(
    emit: Emitter, builder: Any, packed: tuple[Any, int], register: int, step: Any
) -> Iterator[Any]:
    """What a step has of so many rows or outputs: the even ones of all, then the odd ones.

    Each is loaded when it is asked for.
    """
    part, count = packed
    first = builder.mul(step, INT(count * _OF_STEP))
    for at in range(0, count * _OF_STEP, REGISTER_LANES):
        column = builder.add(first, INT(at))
        yield emit.load_register(emit.at(part, INT(register), column))


def _add(
    emit: Emitter, builder: Any, sums: Any, rows: Iterator[Any], weights: list[Any]
) -> None:
    """The next ROWS times these weights."""
    for row, value in enumerate(islice(rows, ROWS)):
        for output, weight in enumerate(weights):
            total = builder.load(sums[row, output])
            total = emit.multiply_add(value, weight, total)
            builder.store(total, sums[row, output])


@intrinsic
def _put(typing: Any, out: Any, totals: Any) -> Any:
    """out[row, output] = the sum of all lanes, of a tile."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        emit = Emitter(context, builder, signature)
        out, totals = (emit.part(i, arguments[i]) for i in range(2))
        padding = [emit.zeros] * (4 - OUTPUTS)
        for row in map(INT, range(ROWS)):
            places = [emit.at(totals, row, INT(o * LANES)) for o in range(OUTPUTS)]
            vectors = [emit.load(place, None) for place in places]
            sums = emit.across(vectors + padding)
            emit.store_lanes(sums, 0, OUTPUTS, emit.at(out, row, INT(0)))
        return context.get_dummy_value()

    return types.void(out, totals), generate
