"""One row of activations, in one pass where transformers makes several."""

from functools import reduce
from typing import Any

import numpy as np
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic

from engine.compiled import compiled
from engine.elementwise import add, gate
from engine.emitter import INT, VECTOR, Emitter
from engine.matmul import bits_at
from engine.vectors import CHAINS, Part

Array = Any


@compiled()
def normalize_row(
    x: int,
    weight: int,
    y: int,
    shape: tuple[int, int],
    constants: tuple[float, float],
    row: int,
) -> None:
    """y = x / sqrt(mean(x^2) + epsilon) * (weight + offset) of one row, bfloat16.

    RMSNorm (arXiv 1910.07467, equation 4); Gemma's weights count from one. By
    addresses; x and y are [rows, dim], weight is [dim]; constants (epsilon, offset).
    """
    dim = shape[1]
    epsilon, offset = np.float32(constants[0]), np.float32(constants[1])
    source, scales, target = _row(x, dim, row), _row(weight, dim, 0), _row(y, dim, row)
    mean = _sum_of_squares(source, dim) / np.float32(dim)
    factor = np.float32(1.0) / np.sqrt(mean + epsilon)
    _scale(source, scales, target, dim, (factor, offset))


@compiled()
def _row(matrix: int, dim: int, row: int) -> Part:
    """A row of a matrix [rows, dim] of bfloat16, by its address."""
    return Part(bits_at(matrix), row * dim, dim)


@intrinsic
def _sum_of_squares(typing: Any, x: Any, dim: Any) -> Any:
    """Of a row, in float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        emit = Emitter(context, builder, signature)
        x, dim = emit.part(0, arguments[0]), arguments[1]
        # One waits for the one before: several chains keep the processor busy.
        sums = emit.sums(CHAINS)

        def add_squares(chain: int, at: Any, mask: Any) -> None:
            some, total = emit.load(emit.at(x, INT(0), at), mask), sums[chain]
            added = emit.multiply_add(some, some, builder.load(total))
            builder.store(added, total)

        emit.each(dim, add_squares, CHAINS)
        return emit.sum_of(reduce(builder.fadd, map(builder.load, sums)))

    return types.float32(x, types.int64), generate


@intrinsic
def _scale(typing: Any, x: Any, weight: Any, y: Any, dim: Any, constants: Any) -> Any:
    """y = x * factor * (weight + offset) of a row; constants are (factor, offset)."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        emit = Emitter(context, builder, signature)
        x, weight, y = (emit.part(i, arguments[i]) for i in range(3))
        factor, offset = (
            emit.splat(builder.extract_value(arguments[4], i), VECTOR) for i in range(2)
        )

        def scale(_: int, at: Any, mask: Any) -> None:
            some, scales = (
                emit.load(emit.at(p, INT(0), at), mask) for p in (x, weight)
            )
            scales = builder.fmul(factor, builder.fadd(scales, offset))
            place = emit.at(y, INT(0), at)
            emit.store_rounded(builder.fmul(some, scales), place, mask)

        emit.each(arguments[3], scale)
        return context.get_dummy_value()

    return types.void(x, weight, y, types.int64, constants), generate


@compiled()
def add_row(a: int, b: int, y: int, shape: tuple[int, int], row: int) -> None:
    """y = a + b of one row, all [rows, dim] of bfloat16, by their addresses."""
    dim = shape[1]
    add(_row(a, dim, row), _row(b, dim, row), _row(y, dim, row), (1, dim))


@compiled()
def rotate_token(
    x: int, y: int, angles: tuple[int, int], shape: tuple[int, int, int], token: int
) -> None:
    """Rotary position embedding (arXiv 2104.09864) of one token's heads.

    x and y are [tokens, heads, dim], angles are (cos, sin) [tokens, dim]; bfloat16 by
    addresses. Halves of a head are rotated against each other, as in transformers.
    """
    _, heads, dim = shape
    all_heads = Part(bits_at(x), token * heads * dim, dim)
    rotated = Part(bits_at(y), token * heads * dim, dim)
    cos, sin = _row(angles[0], dim, token), _row(angles[1], dim, token)
    _rotate(all_heads, rotated, cos, sin, (heads, dim // 2))


@intrinsic
def _rotate(typing: Any, x: Any, y: Any, cos: Any, sin: Any, shape: Any) -> Any:
    """Heads turned by the same angles; shape is (heads, half their dim)."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        emit = Emitter(context, builder, signature)
        x, y, cos, sin = (emit.part(i, arguments[i]) for i in range(4))
        heads, half = (builder.extract_value(arguments[4], i) for i in range(2))
        with cgutils.for_range(builder, heads) as loop:

            def turn(_: int, at: Any, mask: Any) -> None:
                halves = at, builder.add(at, half)
                first, second = (
                    emit.load(emit.at(x, loop.index, each), mask) for each in halves
                )
                for each, one, other in (
                    (halves[0], first, builder.fneg(second)),
                    (halves[1], second, first),
                ):
                    c, s = (
                        emit.load(emit.at(p, INT(0), each), mask) for p in (cos, sin)
                    )
                    turned = emit.multiply_add(one, c, builder.fmul(other, s))
                    emit.store_rounded(turned, emit.at(y, loop.index, each), mask)

            emit.each(half, turn)
        return context.get_dummy_value()

    return types.void(x, y, cos, sin, shape), generate


@compiled()
def gate_rows(
    gates: int, ups: int, y: int, shape: tuple[int, int], curve: int, row: int
) -> None:
    """y = activation(gates) * ups of one row, all [rows, dim] of bfloat16."""
    dim = shape[1]
    gate(_row(gates, dim, row), _row(ups, dim, row), _row(y, dim, row), (1, dim), curve)


@compiled()
def copy_row(x: int, y: int, dim: int, rows: tuple[int, int]) -> None:
    """One row of x to one of y, (from, to), both [.., dim] of bfloat16."""
    source = carray(bits_at(x), (rows[0] + 1, dim))[rows[0]]
    target = carray(bits_at(y), (rows[1] + 1, dim))[rows[1]]
    for j in range(dim):
        target[j] = source[j]
