"""Many rows times a weight matrix, which is read where it lies.

For a prompt it is arithmetic that counts. Rows are packed once, so that sixteen of them
lie side by side for each pair of inputs (the packing of Goto & van de Geijn 2008, doi
10.1145/1356052.1356053, of the smaller operand only); a pair of weights is then one
factor for all of them. Weights stay in the layout of the checkpoint, which all processes
share. Where pairs are not multiplied, both are widened before (`engine.widened`). Sums
are float32. By addresses, as in `engine.matmul`.
"""

from itertools import product
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from engine.compiled import compiled
from engine.compression import GROUP, GROUP_BYTES
from engine.emitter import INT, LANES, Emitter, emit_alone
from engine.matmul import bits_at, put_gated, put_linear, span_of
from engine.task import Task
from engine.vectors import (
    CACHE_LINE_BYTES,
    EVERYTHING,
    Part,
    moved,
    pointer_to,
    start_of,
)
from engine.widened import WIDENS, widen_row

VECTORS = 1 if WIDENS else 3  # of rows that are multiplied at once
PANEL = VECTORS * LANES
# Outputs that are: with so many rows they fill the registers.
AT_ONCE = 6 if WIDENS else 8
SLICE = 72 if WIDENS else 64  # outputs of one task
# What is multiplied at once: pairs of bfloat16, or float32.
TOGETHER = 1 if WIDENS else 2  # inputs
factors_at = pointer_to(types.float32 if WIDENS else types.uint32)
RUN = GROUP // TOGETHER  # steps between two times that memory is asked for weights

Array = Any


@compiled()
def num_panels(rows: int) -> int:
    """How many panels so many rows are."""
    return -(-rows // PANEL)


@compiled()
def num_slices(outputs: int) -> int:
    """How many slices so many outputs are."""
    return -(-outputs // SLICE)


def _columns(vectors: int, outputs: int) -> Any:
    """out[row, o] = left[row] . right[o] for `vectors` x LANES rows and some outputs.

    Called with (out, left, right, following, depth): out is float32, left a panel, right
    weights; depth counts what is multiplied at once. Meanwhile memory is asked for what
    lies at `following`: weights, or groups of `engine.compression`.
    """

    def body(emit: Emitter, builder: Any, parts: list[Any], depth: Any) -> None:
        out, left, right, following = parts
        sums = [emit.sums(vectors) for _ in range(outputs)]
        is_coded = following[3] == types.uint8
        # Elements of a run, and of a line of the cache.
        size = outputs * (GROUP_BYTES if is_coded else GROUP // 2)
        line = CACHE_LINE_BYTES if is_coded else CACHE_LINE_BYTES // 4

        def ask(first: Any) -> None:
            """For what the next outputs have of as many weights as a run has."""
            start = builder.mul(builder.sdiv(first, INT(RUN)), INT(size))
            for place in range(0, size, line):
                at = builder.add(start, INT(place))
                emit.prefetch(emit.at(following, INT(0), at))

        def add(at: Any) -> None:
            places = [emit.at(left, at, INT(v * LANES)) for v in range(vectors)]
            rows = [
                emit.load_element(each, left[3], None, ir.IntType(32)(EVERYTHING))
                for each in places
            ]
            for output, totals in enumerate(sums):
                factor = emit.spread(emit.at(right, INT(output), at), right[3])
                for row, total in zip(rows, totals, strict=True):
                    added = emit.add_products(factor, row, builder.load(total))
                    builder.store(added, total)

        # Runs, because a loop that asks for memory itself gets too few registers.
        runs = cgutils.for_range_slice(builder, INT(0), depth, INT(RUN), inc=True)
        with runs as (first, _):
            ask(first)
            end = builder.add(first, INT(RUN))
            is_short = builder.icmp_signed("<", depth, end)
            end = builder.select(is_short, depth, end)
            steps = cgutils.for_range_slice(builder, first, end, INT(1), inc=True)
            with steps as (at, _):
                add(at)
        for vector, first in product(range(vectors), range(0, outputs, 4)):
            some = [builder.load(each[vector]) for each in sums[first : first + 4]]
            places = [
                emit.at(out, INT(vector * LANES + lane), INT(first))
                for lane in range(LANES)
            ]
            emit.store_columns(some, places)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        name = f"{vectors}x{outputs}.{signature.args[3].types[0].dtype}"
        emit_alone(context, builder, signature, arguments, name, body)
        return context.get_dummy_value()

    @intrinsic
    def call(
        typing: Any, out: Any, left: Any, right: Any, following: Any, depth: Any
    ) -> Any:
        return types.void(out, left, right, following, types.int64), generate

    return call


# A panel that has one vector only needs the last of each three, which then are the same.
_SIZES = [min(vectors, VECTORS) for vectors in (3, 2, 1)]
_columns_3, _columns_2, _columns_1 = (_columns(v, AT_ONCE) for v in _SIZES)
_columns_3x1, _columns_2x1, _columns_1x1 = (_columns(v, 1) for v in _SIZES)


@intrinsic
def _turn(typing: Any, out: Any, rows: Any, count: Any, depth: Any) -> Any:
    """out[pair, row] = rows[row, pair] of LANES rows, pairs of bfloat16.

    Or, widened, out[input, row]. Of the rows only `count` exist; the others are copies
    of the last one. `depth` counts pairs.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        emit = Emitter(context, builder, signature)
        out, rows = (emit.part(i, arguments[i]) for i in range(2))
        last, depth = builder.sub(arguments[2], INT(1)), arguments[3]
        exists = [builder.icmp_signed("<", INT(row), last) for row in range(LANES)]
        numbers = [builder.select(e, INT(i), last) for i, e in enumerate(exists)]

        def put(column: Any, pair: Any) -> None:
            if not WIDENS:
                emit.store_words(column, emit.at(out, pair, INT(0)))
                return
            for odd, half in enumerate(emit.pairs(column)):
                at = builder.add(builder.mul(pair, INT(2)), INT(odd))
                emit.store(half, emit.at(out, at, INT(0)), None)

        def turn(at: Any, width: Any) -> None:
            mask = None if width is None else emit.mask(width)
            words = [emit.load_words(emit.at(rows, n, at), mask) for n in numbers]
            for pair, column in enumerate(emit.turned(words)):
                if width is None:
                    put(column, builder.add(at, INT(pair)))
                    continue
                with builder.if_then(builder.icmp_signed("<", INT(pair), width)):
                    put(column, builder.add(at, INT(pair)))

        rest = builder.srem(depth, INT(LANES))
        whole = builder.sub(depth, rest)
        steps = cgutils.for_range_slice(builder, INT(0), whole, INT(LANES), inc=True)
        with steps as (at, _):
            turn(at, None)
        with builder.if_then(builder.icmp_signed("!=", rest, INT(0))):
            turn(whole, rest)
        return context.get_dummy_value()

    return types.void(out, rows, types.int64, types.int64), generate


words_at = pointer_to(types.uint32)  # pairs of bfloat16


@compiled()
def pack_panel(x: int, packed: int, shape: tuple[int, int], panel: int) -> None:
    """Pack one panel of x [rows, inputs], which are (rows, inputs); inputs are even."""
    (rows, inputs), depth = shape, shape[1] // 2
    out = panel_at(packed, inputs, panel)
    source = Part(words_at(x), 0, depth)
    first = panel * PANEL
    for row in range(first, min(first + PANEL, rows), LANES):
        some = moved(source, row, 0)
        _turn(moved(out, 0, row - first), some, rows - row, depth)


@compiled()
def linear_slice(
    packed: int, weight: int, bias: int, y: int, shape: tuple[int, int, int], task: Task
) -> bool:
    """y = x @ weight.T + bias of a panel and a slice of outputs, x packed.

    Otherwise as `engine.matmul.linear_tile`.
    """
    panel, span = _part_of(shape, task.number)
    sums = _sums(packed, weight, shape, panel, span)
    return put_linear(task, sums, bias, y, shape[2], (*span, panel * PANEL))


@compiled()
def gated_slice(
    packed: int,
    weights: tuple[int, int],
    y: int,
    shape: tuple[int, int, int],
    curve: int,
    task: Task,
) -> bool:
    """y = activation(x @ gate.T) * (x @ up.T) of a panel and a slice, x packed.

    Otherwise as `engine.matmul.gated_tile`.
    """
    panel, span = _part_of(shape, task.number)
    gates = _sums(packed, weights[0], shape, panel, span)
    ups = _sums(packed, weights[1], shape, panel, span)
    place = (*span, panel * PANEL)
    return put_gated(task, (gates, ups), y, shape[2], curve, place)


@compiled()
def _part_of(shape: tuple[int, int, int], task: int) -> tuple[int, tuple[int, int]]:
    """Panel and outputs of a task: all panels pass a slice while it is in cache."""
    some, panel = divmod(task, num_panels(shape[0]))
    return panel, span_of(some, SLICE, shape[2])


@compiled()
def _sums(
    packed: int,
    weight: int,
    shape: tuple[int, int, int],
    panel: int,
    span: tuple[int, int],
) -> Array:
    """A span's outputs of a panel's rows, [rows, width] float32."""
    inputs, (first, width) = shape[1], span
    count = min(PANEL, shape[0] - panel * PANEL)
    vectors = -(-count // LANES)
    sums = np.empty((vectors * LANES, width), np.float32)
    out = Part(start_of(sums), 0, width)
    left = panel_at(packed, inputs, panel)
    whole = np.empty((AT_ONCE if WIDENS else 0, inputs), np.float32)
    for column in range(0, width, AT_ONCE):
        few, place = min(AT_ONCE, width - column), moved(out, 0, column)
        output, sizes = first + column, (inputs // TOGETHER, vectors, few)
        following = Part(words_at(weight), (output + few) * (inputs // 2), 0)
        if WIDENS:
            for j in range(few):
                row = Part(bits_at(weight), (output + j) * inputs, 0)
                widen_row(row, whole[j])
            multiply(place, left, Part(start_of(whole), 0, inputs), following, sizes)
        else:
            some = Part(words_at(weight), output * (inputs // 2), inputs // 2)
            multiply(place, left, some, following, sizes)
    return sums[:count]


@compiled()
def panel_at(packed: int, inputs: int, panel: int) -> Part:
    """A panel of so many inputs; the address is of them all."""
    size = inputs // TOGETHER * PANEL
    return Part(factors_at(packed), panel * size, PANEL)


@compiled()
def multiply(
    out: Part, left: Part, right: Part, following: Part, shape: tuple[int, int, int]
) -> None:
    """AT_ONCE outputs or fewer of a panel; shape is (depth, vectors, outputs)."""
    depth, vectors, outputs = shape
    if outputs == AT_ONCE:
        _all_outputs(out, left, right, following, depth, vectors)
        return
    for column in range(outputs):
        one = moved(right, column, 0)
        _one_output(moved(out, 0, column), left, one, following, depth, vectors)


@compiled()
def _all_outputs(
    out: Part, left: Part, right: Part, following: Part, depth: int, vectors: int
) -> None:
    if vectors == 3:
        _columns_3(out, left, right, following, depth)
    elif vectors == 2:
        _columns_2(out, left, right, following, depth)
    else:
        _columns_1(out, left, right, following, depth)


@compiled()
def _one_output(
    out: Part, left: Part, right: Part, following: Part, depth: int, vectors: int
) -> None:
    if vectors == 3:
        _columns_3x1(out, left, right, following, depth)
    elif vectors == 2:
        _columns_2x1(out, left, right, following, depth)
    else:
        _columns_1x1(out, left, right, following, depth)
