"""A few rows times a weight matrix, reading the matrix once and where it lies.

For the rows of a decode step the time goes into reading weights from memory. So every
weight is read once for all rows, in the layout of the checkpoint ([outputs, inputs],
bfloat16, or int8 with a float32 scale for each output): nothing is laid out anew, and
all processes go on sharing one copy. Sums are float32. Addresses instead of arrays: to
look into an array costs as much as some of these products.
"""

from functools import partial
from itertools import product
from typing import Any

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from engine.compiled import compiled
from engine.compression import GROUP, GROUP_BYTES, TABLE_BYTES
from engine.elementwise import add, gate
from engine.emitter import (
    HAS_WIDE_REGISTERS,
    INT,
    LANES,
    PAIRS,
    Emitter,
    emit_alone,
    is_processor,
)
from engine.several import OUTPUTS, SEVERAL, fill_by_several
from engine.task import Task, claims
from engine.vectors import CACHE_LINE_BYTES, Part, moved, pointer_to, start_of
from engine.widened import WIDENS, widened

AT_ONCE = 8  # outputs that all rows pass before the next: they stay in cache
# Outputs of one task. Where rows are widened each task does that again.
TILE = (6 if WIDENS else 3) * AT_ONCE

Array = Any


# Zen 4 reads from memory as fast as it can in two ways: what lies in a row, if nobody asks
# for it; or what is asked for well ahead, and not into the first cache, which has few
# places for what is on its way.
_IS_ZEN_4 = HAS_WIDE_REGISTERS and is_processor("znver4")
_CACHE = 2 if _IS_ZEN_4 else 1  # that weights are brought into


def _ahead(rows: int, is_plain: bool) -> int:
    """How many outputs before they are needed weights are asked for; 0: nobody asks."""
    if _IS_ZEN_4:
        return AT_ONCE if rows >= 3 else 0
    if not is_plain:  # at any number of rows small weights come too late otherwise
        return AT_ONCE // 2
    return (AT_ONCE if HAS_WIDE_REGISTERS else 2) if rows >= 4 else 0


def _dots(rows: int, beside: int) -> Any:
    """out[r, o] = left[r] . right[o], of bfloat16, for so many rows and any outputs.

    Called with (out, left, right, depth, outputs); out is float32, left may be what
    `engine.widened` made of rows, right may be int8, or groups of `engine.compression`
    after their tables. Pairs of neighbours are multiplied at once, so both operands are
    read as they lie. The rows pass `beside` outputs side by side, the rest one by one.
    """

    def body(
        outputs: int, emit: Emitter, builder: Any, parts: list[Any], depth: Any
    ) -> None:
        out, left, right = parts
        is_coded = right[3] == types.uint8
        ahead = _ahead(rows, right[3] == types.uint16)
        cells = list(product(range(rows), range(outputs)))
        sums = dict(zip(cells, emit.sums(len(cells)), strict=True))
        step = GROUP if is_coded else PAIRS
        tables = [
            emit.table(emit.at(right, INT(output), INT(-TABLE_BYTES)))
            for output in range(outputs if is_coded else 0)
        ]

        def ask(address: Any, num_bytes: int) -> None:
            later = builder.gep(address, [builder.mul(right[2], INT(ahead))])
            for line in range(0, num_bytes, CACHE_LINE_BYTES):
                emit.prefetch(builder.gep(later, [INT(line)]), _CACHE)

        def weights_of(output: int, depth: Any, masks: list[Any]) -> list[Any]:
            if is_coded:
                depth = builder.mul(builder.sdiv(depth, INT(GROUP)), INT(GROUP_BYTES))
            address = emit.at(right, INT(output), depth)
            if ahead:
                ask(address, GROUP_BYTES if is_coded else CACHE_LINE_BYTES)
            if is_coded:
                return list(map(emit.pairs, emit.load_coded(address, tables[output])))
            return [emit.load_pairs(address, masks[0])]

        def row_of(row: int, at: Any, mask: Any) -> tuple[Any, ...]:
            if left[3] == types.uint16:
                return emit.load_pairs(emit.at(left, INT(row), at), mask)
            halves = at, builder.add(at, INT(LANES))
            return tuple(emit.load(emit.at(left, INT(row), h), None) for h in halves)

        def add(depth: Any, masks: list[Any]) -> None:
            weights = [weights_of(output, depth, masks) for output in range(outputs)]
            for row, (i, mask) in product(range(rows), enumerate(masks)):
                values = row_of(row, builder.add(depth, INT(i * PAIRS)), mask)
                for output in range(outputs):
                    total = builder.load(sums[row, output])
                    total = emit.add_products(values, weights[output][i], total)
                    builder.store(total, sums[row, output])

        emit.by_steps(depth, step, add)
        count = 16 if len(cells) == 16 else 4
        for first in range(0, len(cells), count):
            some = [builder.load(sums[cell]) for cell in cells[first : first + count]]
            padding = [emit.zeros] * (count - len(some))
            totals = emit.across(some + padding)
            for lane in range(0, len(some), outputs):
                row = (first + lane) // outputs
                emit.store_lanes(totals, lane, outputs, emit.at(out, INT(row), INT(0)))

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        out, left, right, depth, width = arguments
        of = [str(each.types[0].dtype) for each in signature.args[1:3]]
        stride = builder.extract_value(right, 2)
        whole = builder.sub(width, builder.srem(width, INT(beside)))
        spans = {1: (whole, width), beside: (INT(0), whole)}
        for outputs, (start, end) in spans.items():
            name = ".".join([f"dots_{rows}x{outputs}", *of])
            step, do = INT(outputs), partial(body, outputs)
            loop = cgutils.for_range_slice(builder, start, end, step, inc=True)
            with loop as (column, _):
                some = _shifted(builder, right, builder.mul(column, stride))
                parts = _shifted(builder, out, column), left, some
                emit_alone(context, builder, signature, [*parts, depth], name, do)
        return context.get_dummy_value()

    @intrinsic
    def call(
        typing: Any, out: Any, left: Any, right: Any, depth: Any, outputs: Any
    ) -> Any:
        return types.void(out, left, right, types.int64, types.int64), generate

    return call


def _shifted(builder: Any, part: Any, by: Any) -> Any:
    """A `Part` that starts so many elements later."""
    first = builder.add(builder.extract_value(part, 1), by)
    return builder.insert_value(part, first, 1)


bits_at = pointer_to(types.uint16)  # bfloat16
# Outputs that three rows or four pass side by side, and fewer rows. Few registers have no
# room for the weights of two, and memory likes to be read from one place at a time.
_BESIDE = 4 if HAS_WIDE_REGISTERS else 1
_BESIDE_FEW = 1 if _IS_ZEN_4 else _BESIDE
# Zen 4 is quicker with four rows, and four outputs, at a time: it waits for what it reads.
_BY_EIGHTS = HAS_WIDE_REGISTERS and not _IS_ZEN_4
_dots_8, _dots_5 = _dots(8, 2), _dots(5, 2 if HAS_WIDE_REGISTERS else 1)
_dots_4, _dots_3 = _dots(4, _BESIDE), _dots(3, _BESIDE)
_dots_2, _dots_1 = _dots(2, _BESIDE_FEW), _dots(1, _BESIDE_FEW)


@compiled()
def num_tiles(outputs: int, size: int = TILE) -> int:
    """Tiles of a product with so many outputs."""
    return -(-outputs // size)


@compiled()
def linear_tile(
    x: int, weight: int, bias: int, y: int, shape: tuple[int, int, int], task: Task
) -> bool:
    """y = x @ weight.T + bias of one tile of outputs; shape is (rows, inputs, outputs).

    By addresses: x [rows, inputs], weight [outputs, inputs], bias [outputs], y [rows,
    outputs], all bfloat16 and contiguous. False if somebody else had put the tile.
    """
    span = span_of(task.number, TILE, shape[2])
    sums = sums_of(x, Part(bits_at(weight), 0, shape[1]), shape, span)
    return put_linear(task, sums, bias, y, shape[2], (*span, 0))


@compiled()
def gated_tile(
    x: int,
    weights: tuple[int, int],
    y: int,
    shape: tuple[int, int, int],
    curve: int,
    task: Task,
) -> bool:
    """y = activation(x @ gate.T) * (x @ up.T) of one tile; weights are (gate, up).

    Otherwise as `linear_tile`; for `curve` see `engine.elementwise.gate`.
    """
    span = span_of(task.number, TILE, shape[2])
    gates = sums_of(x, Part(bits_at(weights[0]), 0, shape[1]), shape, span)
    ups = sums_of(x, Part(bits_at(weights[1]), 0, shape[1]), shape, span)
    return put_gated(task, (gates, ups), y, shape[2], curve, (*span, 0))


@compiled()
def span_of(tile: int, size: int, outputs: int) -> tuple[int, int]:
    """The first output of a tile, and how many it has."""
    first = tile * size
    return first, min(size, outputs - first)


@compiled()
def put_linear(
    task: Task,
    sums: Array,
    bias: int,
    y: int,
    outputs: int,
    place: tuple[int, int, int],
) -> bool:
    """Add the bias to some sums and round them into y; False if that was done.

    Their place is (first output, how many, first row).
    """
    if not claims(task):
        return False
    first, width, top = place
    offsets = Part(bits_at(bias), first, 0)
    answer = Part(bits_at(y), top * outputs + first, outputs)
    add(Part(start_of(sums), 0, width), offsets, answer, (len(sums), width))
    return True


@compiled()
def put_gated(
    task: Task,
    pair: tuple[Array, Array],
    y: int,
    outputs: int,
    curve: int,
    place: tuple[int, int, int],
) -> bool:
    """Put gates and ups together and round them into y; otherwise as `put_linear`."""
    if not claims(task):
        return False
    first, width, top = place
    gates, ups = Part(start_of(pair[0]), 0, width), Part(start_of(pair[1]), 0, width)
    answer = Part(bits_at(y), top * outputs + first, outputs)
    gate(gates, ups, answer, (len(pair[0]), width), curve)
    return True


@compiled()
def sums_of(
    x: int, weights: Part, shape: tuple[int, int, int], span: tuple[int, int]
) -> Array:
    """A span's outputs of every row, [rows, width] float32, of bfloat16 or int8."""
    (rows, depth, _), (first, width) = shape, span
    sums = np.empty((rows, width), np.float32)
    left, right = Part(bits_at(x), 0, depth), moved(weights, first, 0)
    if WIDENS and rows >= SEVERAL and width >= OUTPUTS:
        fill_by_several(sums, left, right, depth)
    elif WIDENS:
        _fill_by_widened(sums, widened(left, (rows, depth)), right, depth)
    else:
        _fill(sums, left, right, depth)
    return sums


@compiled()
def _fill_by_widened(sums: Array, rows: Array, right: Part, depth: int) -> None:
    _fill(sums, Part(start_of(rows), 0, rows.shape[1]), right, depth)


@compiled()
def _fill(sums: Array, left: Part, right: Part, depth: int) -> None:
    rows, width = sums.shape
    out = Part(start_of(sums), 0, width)
    column = 0
    while column < width:
        # Few enough weights that they stay in the first cache while all rows pass.
        few = min(AT_ONCE, width - column)
        _all_rows(
            moved(out, 0, column), left, moved(right, column, 0), (rows, depth, few)
        )
        column += AT_ONCE


@compiled()
def _all_rows(out: Part, left: Part, right: Part, shape: tuple[int, int, int]) -> None:
    rows, depth, width = shape
    row = 0
    while row < rows:
        count = _rows_of_pass(rows - row)
        answer, some = moved(out, row, 0), moved(left, row, 0)
        if count == 8:
            _dots_8(answer, some, right, depth, width)
        elif count == 5:
            _dots_5(answer, some, right, depth, width)
        elif count == 4:
            _dots_4(answer, some, right, depth, width)
        elif count == 3:
            _dots_3(answer, some, right, depth, width)
        elif count == 2:
            _dots_2(answer, some, right, depth, width)
        else:
            _dots_1(answer, some, right, depth, width)
        row += count


@compiled()
def _rows_of_pass(rows: int) -> int:
    """How many of so many rows are next: a pass of one takes nearly as long as of four."""
    if _BY_EIGHTS and rows >= 8:
        return 8
    if rows == 6:
        return 4 if _BY_EIGHTS else 3
    return rows if rows <= 5 else 4
