"""Many rows times a weight matrix, which is read where it lies.

For a prompt it is arithmetic that counts. Rows are packed once, so that sixteen of them
lie side by side for each pair of inputs (the packing of Goto & van de Geijn 2008, doi
10.1145/1356052.1356053, of the smaller operand only); a pair of weights is then one
factor for all of them. Weights stay in the layout of the checkpoint, which all processes
share. Sums are float32. By addresses, as in `engine.matmul`.
"""

from itertools import product
from typing import Any

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from engine.compiled import compiled
from engine.compression import GROUP, GROUP_BYTES
from engine.emitter import HAS_WIDE_REGISTERS, INT, LANES, Emitter, emit_alone
from engine.matmul import put_gated, put_linear, span_of
from engine.task import Task
from engine.vectors import CACHE_LINE_BYTES, Part, moved, pointer_to, start_of

VECTORS = 3 if HAS_WIDE_REGISTERS else 1  # of rows that are multiplied at once
PANEL = VECTORS * LANES
# Outputs that are: with so many rows they fill the registers.
AT_ONCE = 8 if HAS_WIDE_REGISTERS else 4
SLICE = 64  # outputs of one task
RUN = GROUP // 2  # pairs of inputs between two times that memory is asked for weights

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

    Called with (out, left, right, following, depth): out is float32, left a panel, right weights;
    depth counts pairs. Meanwhile memory is asked for what lies at `following`: weights,
    or groups of `engine.compression`.
    """

    def body(emit: Emitter, builder: Any, parts: list[Any], depth: Any) -> None:
        out, left, right, following = parts
        sums = [emit.sums(vectors) for _ in range(outputs)]
        is_coded = following[3] == types.uint8
        # Elements of a run, and of a line of the cache.
        size = outputs * (GROUP_BYTES if is_coded else RUN)
        line = CACHE_LINE_BYTES if is_coded else CACHE_LINE_BYTES // 4

        def ask(first: Any) -> None:
            """For what the next outputs have of as many weights as a run has."""
            start = builder.mul(builder.sdiv(first, INT(RUN)), INT(size))
            for place in range(0, size, line):
                at = builder.add(start, INT(place))
                emit.prefetch(emit.at(following, INT(0), at))

        def add(pair: Any) -> None:
            rows = [
                emit.load_pairs(emit.at(left, pair, INT(vector * LANES)), None)
                for vector in range(vectors)
            ]
            for output, totals in enumerate(sums):
                factor = emit.spread(emit.at(right, INT(output), pair), right[3])
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
            with steps as (pair, _):
                add(pair)
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
    """out[pair, row] = rows[row, pair] of LANES rows; both hold pairs of bfloat16.

    Of the rows only `count` exist; the others are copies of the last one. `depth`
    counts pairs.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        emit = Emitter(context, builder, signature)
        out, rows = (emit.part(i, arguments[i]) for i in range(2))
        last, depth = builder.sub(arguments[2], INT(1)), arguments[3]
        exists = [builder.icmp_signed("<", INT(row), last) for row in range(LANES)]
        numbers = [builder.select(e, INT(i), last) for i, e in enumerate(exists)]

        def turn(at: Any, width: Any) -> None:
            mask = None if width is None else emit.mask(width)
            words = [emit.load_words(emit.at(rows, n, at), mask) for n in numbers]
            for pair, column in enumerate(emit.turned(words)):
                place = emit.at(out, builder.add(at, INT(pair)), INT(0))
                if width is None:
                    emit.store_words(column, place)
                    continue
                with builder.if_then(builder.icmp_signed("<", INT(pair), width)):
                    emit.store_words(column, place)

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
    rows, depth = shape[0], shape[1] // 2
    out = Part(words_at(packed), panel * depth * PANEL, PANEL)
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
    depth, (first, width) = shape[1] // 2, span
    count = min(PANEL, shape[0] - panel * PANEL)
    vectors = -(-count // LANES)
    sums = np.empty((vectors * LANES, width), np.float32)
    out = Part(start_of(sums), 0, width)
    left = panel_at(packed, depth, panel)
    right = Part(words_at(weight), first * depth, depth)
    for column in range(0, width, AT_ONCE):
        few = min(AT_ONCE, width - column)
        some = moved(right, column, 0)
        following = moved(some, few, 0)
        multiply(moved(out, 0, column), left, some, following, (depth, vectors, few))
    return sums[:count]


@compiled()
def panel_at(packed: int, depth: int, panel: int) -> Part:
    """A panel of so many pairs; the address is of them all."""
    return Part(words_at(packed), panel * depth * PANEL, PANEL)


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
