"""Small matrix products whose sums stay in vector registers, for kernels of numba.

What a compiler does not find by itself in loops over arrays: a block of the answer is
held in registers while the whole depth passes by, and bfloat16 is multiplied by pairs.
Sizes known at compile time make one function each; `multiply_add` cuts any product into
them. (The "micro-kernel" of Goto & van de Geijn 2008, doi
10.1145/1356052.1356053, without packing: the operands lie in cache already.)
"""

from functools import reduce
from itertools import product
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from engine.compiled import compiled
from engine.emitter import HAS_WIDE_REGISTERS, INT, LANES, VECTOR, Emitter

Array = Any
CACHE_LINE_BYTES = 64
IN_FLIGHT = 8 if HAS_WIDE_REGISTERS else 4  # multiply-adds that a core can have begun
CHAINS = 4  # comparisons that it can

# Of a pair of bfloat16: both, the first, the second.
EVERYTHING, FIRST, SECOND = 0xFFFFFFFF, 0x0000FFFF, 0xFFFF0000


class Part(NamedTuple):
    """A matrix inside an array that somebody else keeps alive.

    Row r starts at element `first + r * stride`. `start` is where the array starts,
    as `start_of` gives it; to carry the array itself would count its references.
    """

    start: Any  # of float32; or of uint32, each a pair of bfloat16
    first: int
    stride: int


def pointer_to(element: Any) -> Any:
    """A function from an address to a pointer to such elements."""

    @intrinsic
    def call(typing: Any, address: Any) -> Any:
        return types.CPointer(element)(types.int64), _pointer

    return call


@intrinsic
def pointer_like(typing: Any, address: Any, element: Any) -> Any:
    """To elements like this one."""
    return types.CPointer(element)(types.int64, element), _pointer


def _pointer(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    kind = context.get_value_type(signature.return_type)
    return builder.inttoptr(arguments[0], kind)


def _product(rows: int, vectors: int, *, masked: bool = False) -> Any:
    """out += left @ right for `rows` rows and `vectors` x LANES columns.

    Called with (out, left, right, depth, width, keep); `width` columns count where
    `masked`, and of each element of `right` the bits that `keep` has.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        emit = Emitter(context, builder, signature)
        out, left, right = (emit.part(i, arguments[i]) for i in range(3))
        mask = emit.mask(arguments[4]) if masked else None
        keep = arguments[5]
        cells = list(product(range(rows), range(vectors)))
        # A sum waits for the one before: enough of them keep the multipliers busy.
        num_sums = max(1, IN_FLIGHT // len(cells))
        sums = [
            dict(zip(cells, emit.sums(len(cells)), strict=True))
            for _ in range(num_sums)
        ]

        def place(part: Any, row: Any, vector: int) -> Any:
            return emit.at(part, row, INT(vector * LANES))

        def add(depth: Any, sums: Any) -> None:
            """One column of `left` times one row of `right`."""
            across = [
                emit.load_element(place(right, depth, vector), right[3], mask, keep)
                for vector in range(vectors)
            ]
            for row in range(rows):
                factor = emit.spread(emit.at(left, INT(row), depth), left[3])
                for vector in range(vectors):
                    total = builder.load(sums[row, vector])
                    total = emit.add_products(factor, across[vector], total)
                    builder.store(total, sums[row, vector])

        depth, step = arguments[3], INT(num_sums)
        whole = builder.sub(depth, builder.srem(depth, step))
        with cgutils.for_range_slice(builder, INT(0), whole, step, inc=True) as at:
            for number in range(num_sums):
                add(builder.add(at[0], INT(number)), sums[number])
        with cgutils.for_range_slice(builder, whole, depth, INT(1), inc=True) as at:
            add(at[0], sums[0])
        for row, vector in cells:
            address = place(out, INT(row), vector)
            total = emit.load(address, mask)
            for one in sums:
                total = builder.fadd(total, builder.load(one[row, vector]))
            emit.store(total, address, mask)
        return context.get_dummy_value()

    @intrinsic
    def call(
        typing: Any, out: Any, left: Any, right: Any, depth: Any, width: Any, keep: Any
    ) -> Any:
        numbers = types.int64, types.int64, types.uint32
        return types.void(out, left, right, *numbers), generate

    return call


@intrinsic
def start_of(typing: Any, values: Any) -> Any:
    """Where the elements of a contiguous array start; it must outlive the use of that.

    An element is a float32, or a uint32 with a pair of bfloat16.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        pointer = context.get_value_type(signature.return_type)
        return builder.bitcast(array.data, pointer)

    element = types.float32 if values.dtype == types.float32 else types.uint32
    return types.CPointer(element)(values), generate


@intrinsic
def greatest_of(typing: Any, start: Any, first: Any, count: Any) -> Any:
    """The greatest of `count` float32 in a row, at least one; NaN if one is."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        start, first, count = arguments
        emit = Emitter(context, builder, signature)
        lowest = ir.Constant(VECTOR, [float("-inf")] * LANES)
        # One waits for the one before: several chains keep the processor busy.
        best = [cgutils.alloca_once_value(builder, lowest) for _ in range(CHAINS)]

        def see(chain: int, index: Any, mask: Any) -> None:
            address = builder.gep(start, [builder.add(first, index)])
            some = emit.load(address, mask)
            if mask is not None:
                some = builder.select(mask, some, lowest)
            builder.store(emit.greater(builder.load(best[chain]), some), best[chain])

        emit.each(count, see, CHAINS)
        vectors = [builder.load(each) for each in best]
        return emit.greatest(reduce(emit.greater, vectors))

    return types.float32(start, types.int64, types.int64), generate


@intrinsic
def prefetch(typing: Any, start: Any, first: Any, count: Any) -> Any:
    """Ask for `count` elements in a row to be brought into the second cache."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        start, first, count = arguments
        emit = Emitter(context, builder, signature)
        line = INT(CACHE_LINE_BYTES * 8 // signature.args[0].dtype.bitwidth)
        with cgutils.for_range_slice(builder, INT(0), count, line, inc=True) as at:
            emit.prefetch(builder.gep(start, [builder.add(first, at[0])]), 2)
        return context.get_dummy_value()

    return types.void(start, types.int64, types.int64), generate


_wide_4, _wide_2, _wide_1 = (_product(rows, 4) for rows in (4, 2, 1))
_narrow_8, _narrow_4, _narrow_2, _narrow_1 = (
    _product(rows, 1) for rows in (8, 4, 2, 1)
)
_ragged_1 = _product(1, 1, masked=True)


@compiled()
def multiply_add(
    out: Part, left: Part, right: Part, shape: tuple[int, int, int], keep: int
) -> None:
    """out += left @ right, summed in float32; shape is (rows, depth, columns).

    `left` and `right` hold float32, or pairs of bfloat16 along the depth, which counts
    elements. `keep` is EVERYTHING, or which half of each pair of `right` is there. A
    broken value in `right` reaches its own column only, one in `left` its own row.
    """
    rows, depth, columns = shape
    column = 0
    while HAS_WIDE_REGISTERS and column + 4 * LANES <= columns:
        _wide(moved(out, 0, column), left, moved(right, 0, column), rows, depth, keep)
        column += 4 * LANES
    while column + LANES <= columns:
        _narrow(moved(out, 0, column), left, moved(right, 0, column), rows, depth, keep)
        column += LANES
    if column < columns:
        width = columns - column
        last = moved(right, 0, column)
        for row in range(rows):
            one = moved(out, row, column)
            _ragged_1(one, moved(left, row, 0), last, depth, width, keep)


@compiled()
def moved(part: Part, row: int, column: int) -> Part:
    """The part that starts so far down and to the right."""
    first = part.first + row * part.stride + column
    return Part(part.start, first, part.stride)


@compiled()
def _wide(out: Part, left: Part, right: Part, rows: int, depth: int, keep: int) -> None:
    row = 0
    while row + 4 <= rows:
        _wide_4(moved(out, row, 0), moved(left, row, 0), right, depth, 0, keep)
        row += 4
    if row + 2 <= rows:
        _wide_2(moved(out, row, 0), moved(left, row, 0), right, depth, 0, keep)
        row += 2
    if row < rows:
        _wide_1(moved(out, row, 0), moved(left, row, 0), right, depth, 0, keep)


@compiled()
def _narrow(
    out: Part, left: Part, right: Part, rows: int, depth: int, keep: int
) -> None:
    row = 0
    while HAS_WIDE_REGISTERS and row + 8 <= rows:
        _narrow_8(moved(out, row, 0), moved(left, row, 0), right, depth, 0, keep)
        row += 8
    while row + 4 <= rows:
        _narrow_4(moved(out, row, 0), moved(left, row, 0), right, depth, 0, keep)
        row += 4
    if row + 2 <= rows:
        _narrow_2(moved(out, row, 0), moved(left, row, 0), right, depth, 0, keep)
        row += 2
    if row < rows:
        _narrow_1(moved(out, row, 0), moved(left, row, 0), right, depth, 0, keep)
