"""Some rows by the keys, or by the values, of four blocks at once, for attention.

`engine.vectors` multiplies a block at a time, whose sums are put away and fetched again
too often, and with the few rows of a decoding sequence half of its multipliers wait, or
each block is widened for some of the rows and then for the others.
Memory is asked for what comes next: where a product is one quick pass, before it, or else
while it passes.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from engine.emitter import HAS_WIDE_REGISTERS, INT, LANES, Emitter
from engine.vectors import EVERYTHING

FOUR = 4  # blocks, rows, and vectors of values
COLUMNS = FOUR * LANES  # of values
# Blocks of keys, or vectors of values, that pass at once: sums of so many for four rows are
# half of the registers, of 32 or of 16 half as wide.
ACROSS = FOUR if HAS_WIDE_REGISTERS else 1
IN_A_PASS = ACROSS == FOUR  # a product is one


class Starts(NamedTuple):
    """Where something lies in each of four blocks, in elements."""

    one: int
    two: int
    three: int
    four: int


@intrinsic
def score_four(
    typing: Any, out: Any, left: Any, keys: Any, starts: Any, shape: Any
) -> Any:
    """out[row, LANES x block + slot] = left[row] . key, of blocks of LANES slots.

    Elements as of `engine.vectors.multiply_add`, `keys` are all memory, the shape is (rows,
    depth). Starts are (of these keys, of what follows): for as many bytes as the keys
    have, memory is asked meanwhile.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        emit, parts, starts, (rows, depth) = _taken(
            context, builder, signature, arguments
        )
        out, left, keys = parts
        starts, following = (_listed(builder, each) for each in starts)

        with _passes(builder) as first:
            blocks = [builder.add(first, INT(i)) for i in range(ACROSS)]
            nows = [_at(builder, starts, block) for block in blocks]
            laters = [_at(builder, following, block) for block in blocks]

            def ask(at: Any) -> None:
                for later in laters:
                    emit.prefetch(emit.at(keys, at, later), 2)

            if IN_A_PASS:
                with cgutils.for_range(builder, depth) as loop:
                    ask(loop.index)

            def score(row: Any, count: int) -> None:
                sums = _Sums(emit, builder, count)
                with cgutils.for_range(builder, depth) as loop:
                    if not IN_A_PASS:
                        ask(loop.index)
                    places = [emit.at(keys, loop.index, now) for now in nows]
                    across = [_load(emit, place, keys) for place in places]
                    sums.add(left, row, loop.index, across)
                sums.put((out, row, first))

            _by_fours(builder, rows, score)
        return context.get_dummy_value()

    return types.void(out, left, keys, starts, shape), generate


@intrinsic
def answer_four(
    typing: Any, out: Any, left: Any, values: Any, starts: Any, shape: Any
) -> Any:
    """out += left @ values, of COLUMNS of them and blocks of `depth` elements.

    Otherwise as `score_four`; `left` goes on from block to block.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        emit, parts, starts, (rows, depth) = _taken(
            context, builder, signature, arguments
        )
        (out, left, values), (starts, following) = parts, starts

        with _passes(builder) as first:
            columns = [
                builder.mul(builder.add(first, INT(i)), INT(LANES))
                for i in range(ACROSS)
            ]

            def ask(at: Any) -> None:
                line = builder.mul(at, INT(COLUMNS))
                for column in columns:
                    ahead = builder.add(line, column)
                    for later in following:
                        place = emit.at(values, INT(0), builder.add(later, ahead))
                        emit.prefetch(place, 2)

            if IN_A_PASS:
                with cgutils.for_range(builder, depth) as loop:
                    ask(loop.index)

            def answer(row: Any, count: int) -> None:
                where = out, row, first
                sums = _Sums(emit, builder, count, where)
                with cgutils.for_range(builder, depth) as loop:
                    if not IN_A_PASS:
                        ask(loop.index)
                    for block, start in enumerate(starts):
                        places = [
                            emit.at(values, loop.index, builder.add(start, column))
                            for column in columns
                        ]
                        across = [_load(emit, place, values) for place in places]
                        at = builder.add(loop.index, builder.mul(depth, INT(block)))
                        sums.add(left, row, at, across)
                sums.put(where)

            _by_fours(builder, rows, answer)
        return context.get_dummy_value()

    return types.void(out, left, values, starts, shape), generate


class _Sums:
    """Of some rows and the vectors of columns of one pass, in registers."""

    def __init__(self, emit: Emitter, builder: Any, rows: int, of: Any = None) -> None:
        """From zero, or from what lies at (part, first row, first vector)."""
        self._emit, self._builder, self._rows = emit, builder, rows
        cells = list(product(range(rows), range(ACROSS)))
        self._sums = dict(zip(cells, emit.sums(len(cells)), strict=True))
        if of is not None:
            for total, place in self._places(*of):
                builder.store(emit.load(place, None), total)

    def add(self, left: Any, first: Any, at: Any, across: list[Any]) -> None:
        """One element of each row times one of each column."""
        for row in range(self._rows):
            place = self._emit.at(left, self._builder.add(first, INT(row)), at)
            factor = self._emit.spread(place, left[3])
            for vector, right in enumerate(across):
                total = self._builder.load(self._sums[row, vector])
                added = self._emit.add_products(factor, right, total)
                self._builder.store(added, self._sums[row, vector])

    def put(self, where: tuple[Any, Any, Any]) -> None:
        for total, place in self._places(*where):
            self._emit.store(self._builder.load(total), place, None)

    def _places(self, out: Any, row: Any, vector: Any) -> list[tuple[Any, Any]]:
        """Each sum, and where it belongs."""
        at, add, mul = self._emit.at, self._builder.add, self._builder.mul
        return [
            (total, at(out, add(row, INT(i)), mul(add(vector, INT(j)), INT(LANES))))
            for (i, j), total in self._sums.items()
        ]


@contextmanager
def _passes(builder: Any) -> Iterator[Any]:
    """What stands inside, for the first of each ACROSS of four."""
    if IN_A_PASS:
        yield INT(0)
        return
    with cgutils.for_range(builder, INT(FOUR // ACROSS)) as loop:
        yield builder.mul(loop.index, INT(ACROSS))


def _listed(builder: Any, values: list[Any]) -> Any:
    """Numbers in memory, to be taken by another number."""
    space = cgutils.alloca_once(builder, ir.IntType(64), size=len(values))
    for i, value in enumerate(values):
        builder.store(value, builder.gep(space, [INT(i)]))
    return space


def _at(builder: Any, numbers: Any, index: Any) -> Any:
    return builder.load(builder.gep(numbers, [index]))


def _by_fours(builder: Any, rows: Any, do: Callable[[Any, int], None]) -> None:
    """do(first row, how many) for four rows after others, and for the rest."""
    steps = cgutils.for_range_slice(builder, INT(0), rows, INT(FOUR), inc=True)
    with steps as (row, _):
        left = builder.sub(rows, row)
        for count in range(1, FOUR):
            with builder.if_then(builder.icmp_signed("==", left, INT(count))):
                do(row, count)
        with builder.if_then(builder.icmp_signed(">=", left, INT(FOUR))):
            do(row, FOUR)


def _taken(
    context: Any, builder: Any, signature: Any, arguments: Any
) -> tuple[Emitter, list[Any], list[Any], list[Any]]:
    """What both products are called with: the parts, both starts and the shape."""
    emit, unpack = Emitter(context, builder, signature), builder.extract_value
    parts = [emit.part(i, arguments[i]) for i in range(3)]
    starts = [[unpack(arguments[3], (i, j)) for j in range(FOUR)] for i in range(2)]
    return emit, parts, starts, [unpack(arguments[4], i) for i in range(2)]


def _load(emit: Emitter, place: Any, part: Any) -> Any:
    return emit.load_element(place, part[3], None, ir.IntType(32)(EVERYTHING))
