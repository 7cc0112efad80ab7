"""Rows widened to float32 once, for processors that cannot multiply bfloat16 by pairs.

Such a processor makes two float32 of a pair before it multiplies them. A row meets many
others, and in the few registers that these processors have nothing stays widened: doing
it at every meeting would be up to half of the work.
"""

from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from engine.compiled import compiled
from engine.compression import GROUP, GROUP_BYTES, TABLE_BYTES
from engine.emitter import HAS_WIDE_REGISTERS, INT, LANES, PAIRS, Emitter
from engine.vectors import Part, moved, start_of

Array = Any
# What has wide registers multiplies pairs, or leaves prompts to oneDNN.
WIDENS = not HAS_WIDE_REGISTERS


@compiled()
def widened(x: Part, shape: tuple[int, int]) -> Array:
    """Rows of bfloat16 as pairs, [rows, depth] float32; shape is (rows, depth).

    Of each PAIRS those with even numbers come first, which is how weights become
    float32. The depth is filled up with zeros to whole groups.
    """
    rows, depth = shape
    whole = -(-depth // GROUP) * GROUP
    values = np.zeros((rows, whole), np.float32)
    for row in range(rows):
        place = Part(start_of(values), row * whole, 0)
        _widen_pairs(place, moved(x, row, 0), depth)
    return values


@intrinsic
def _widen_pairs(typing: Any, out: Any, row: Any, depth: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        emit = Emitter(context, builder, signature)
        out, row = (emit.part(i, arguments[i]) for i in range(2))

        def widen(at: Any, masks: list[Any]) -> None:
            halves = emit.load_halves(emit.at(row, INT(0), at), masks[0])
            for i, half in enumerate(halves):
                column = builder.add(at, INT(i * LANES))
                emit.store(half, emit.at(out, INT(0), column), None)

        emit.by_steps(arguments[2], PAIRS, widen)
        return context.get_dummy_value()

    return types.void(out, row, types.int64), generate


@compiled()
def widen_row(row: Part, values: Array) -> None:
    """One row in order, of bfloat16 or of groups of `engine.compression`."""
    _widen_row(Part(start_of(values), 0, 0), row, len(values))


@intrinsic
def _widen_row(typing: Any, out: Any, row: Any, depth: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        emit = Emitter(context, builder, signature)
        out, row = (emit.part(i, arguments[i]) for i in range(2))

        def widen(_: int, at: Any, mask: Any) -> None:
            some = emit.load(emit.at(row, INT(0), at), mask)
            emit.store(some, emit.at(out, INT(0), at), mask)

        def expand(depth: Any, masks: list[Any]) -> None:
            column = builder.mul(builder.sdiv(depth, INT(GROUP)), INT(GROUP_BYTES))
            words = emit.load_coded(emit.at(row, INT(0), column), table)
            for i, (some, mask) in enumerate(zip(words, masks, strict=True)):
                for j, half in enumerate(emit.in_order(some)):
                    at = builder.add(depth, INT(i * PAIRS + j * LANES))
                    lanes = None if mask is None else emit.half_of(mask, j)
                    emit.store(half, emit.at(out, INT(0), at), lanes)

        if row[3] == types.uint8:
            table = emit.table(emit.at(row, INT(0), INT(-TABLE_BYTES)))
            emit.by_steps(arguments[2], GROUP, expand)
        else:
            emit.each(arguments[2], widen)
        return context.get_dummy_value()

    return types.void(out, row, types.int64), generate
