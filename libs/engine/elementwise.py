"""Arithmetic on rows in vectors of float32, rounded once; for kernels of numba."""

from typing import Any

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from engine.compiled import compiled
from engine.emitter import LEAST, LOG2_E, POWERS, Emitter
from engine.vectors import Part

Array = Any

SILU, GELU_TANH = 0, 1  # curves of an activation: x * sigmoid(x), x * sigmoid(z)


@compiled()
def exponential(x: Any) -> Any:
    """exp(x) of float32 by arithmetic that vectorises; libm's does not.

    2^y = 2^n 2^f with n the nearest whole number: 2^n is an exponent's bits, 2^f its
    Taylor polynomial, off by 1.2e-7. NaN stays NaN; below 2^-126 it is zero. `x` must
    be less than 88, where float32 ends.
    """
    y = x * np.float32(LOG2_E)
    n = np.floor(y + np.float32(0.5))
    f = y - n
    power = np.float32(POWERS[0])
    for i in range(1, len(POWERS)):
        power = power * f + np.float32(POWERS[i])
    bits = (np.int32(n) + np.int32(127)) << np.int32(23)
    value = power * np.int32(bits).view(np.float32)
    return np.float32(0.0) if y < np.float32(LEAST) else value


def _gate(curve: int) -> Any:
    """y = activation(gates) * ups, [rows, width], of the curve SILU or GELU_TANH.

    Called with (gates, ups, y, (rows, width)); gates and ups are float32 or bfloat16,
    y is bfloat16.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        emit = Emitter(context, builder, signature)

        def put(operands: list[Any], y: Any, mask: Any) -> None:
            x, up = (emit.load(operand, mask) for operand in operands)
            z = x
            if curve == GELU_TANH:
                # sqrt(8 / pi) (x + 0.044715 x^3): arXiv 1606.08415, section 2
                cube = builder.fmul(builder.fmul(x, x), x)
                z = emit.multiply_add(emit.every(0.044715), cube, x)
                z = builder.fmul(emit.every(1.5957691), z)
            gate = builder.fmul(x, emit.sigmoid(z))
            emit.store_rounded(builder.fmul(gate, up), y, mask)

        _each_row(emit, builder, arguments, put)
        return context.get_dummy_value()

    @intrinsic
    def call(typing: Any, gates: Any, ups: Any, y: Any, shape: Any) -> Any:
        return types.void(gates, ups, y, shape), generate

    return call


gate_silu, gate_gelu = _gate(SILU), _gate(GELU_TANH)


@compiled()
def gate(gates: Part, ups: Part, y: Part, shape: tuple[int, int], curve: int) -> None:
    """y = activation(gates) * ups, rounded; shape is (rows, width)."""
    if curve == GELU_TANH:
        gate_gelu(gates, ups, y, shape)
    else:
        gate_silu(gates, ups, y, shape)


@intrinsic
def add(typing: Any, some: Any, others: Any, y: Any, shape: Any) -> Any:
    """y = some + others, [rows, width], each float32 or bfloat16; y is bfloat16."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        emit = Emitter(context, builder, signature)

        def put(operands: list[Any], y: Any, mask: Any) -> None:
            a, b = (emit.load(operand, mask) for operand in operands)
            emit.store_rounded(builder.fadd(a, b), y, mask)

        _each_row(emit, builder, arguments, put)
        return context.get_dummy_value()

    return types.void(some, others, y, shape), generate


def _each_row(emit: Emitter, builder: Any, arguments: Any, put: Any) -> None:
    """put(addresses of operands, address of the answer, mask) for LANES elements each.

    Of arguments (operands, answer, (rows, width)).
    """
    *operands, y = (emit.part(i, part) for i, part in enumerate(arguments[:-1]))
    rows, width = (builder.extract_value(arguments[-1], i) for i in range(2))
    with cgutils.for_range(builder, rows) as loop:

        def at(part: Any, index: Any) -> Any:
            return emit.at(part, loop.index, index)

        def some(_: int, index: Any, mask: Any) -> None:
            put([at(part, index) for part in operands], at(y, index), mask)

        emit.each(width, some)


@compiled()
def narrow(source: Array, target: Array) -> None:
    """Copy from float32, to bfloat16 by rounding to nearest even; NaN stays NaN."""
    _copy_rounded(source, target)


@intrinsic
def _copy_rounded(typing: Any, source: Any, target: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        emit = Emitter(context, builder, signature)
        from_, to = (
            context.make_array(kind)(context, builder, value)
            for kind, value in zip(signature.args, arguments, strict=True)
        )
        count = builder.extract_value(from_.shape, 0)

        def copy(_: int, at: Any, mask: Any) -> None:
            vector = emit.load(builder.gep(from_.data, [at]), mask)
            put = emit.store if target.dtype == types.float32 else emit.store_rounded
            put(vector, builder.gep(to.data, [at]), mask)

        emit.each(count, copy)
        return context.get_dummy_value()

    return types.void(source, target), generate
