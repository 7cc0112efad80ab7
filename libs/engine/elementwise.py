"""Arithmetic on rows of float32, written so that it vectorises; for kernels of numba."""

from typing import Any

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from engine.compiled import compiled
from engine.emitter import INT, LANES, LEAST, LOG2_E, POWERS, Emitter

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


@compiled()
def gate_row(gates: Array, ups: Array, curve: int) -> None:
    """gates = activation(gates) * ups, of the curve SILU or GELU_TANH."""
    if curve == GELU_TANH:
        for j in range(gates.shape[0]):
            x = gates[j]
            # sqrt(8 / pi) (x + 0.044715 x^3): arXiv 1606.08415, section 2
            z = np.float32(1.5957691) * (x + np.float32(0.044715) * x * x * x)
            gates[j] = x * _sigmoid(z) * ups[j]
    else:
        for j in range(gates.shape[0]):
            gates[j] = gates[j] * _sigmoid(gates[j]) * ups[j]


@compiled()
def _sigmoid(z: Any) -> Any:
    # Beyond exp(87), float32's last, the sigmoid is zero in all its digits.
    power = exponential(min(-z, np.float32(87.0)))
    return np.float32(1.0) / (np.float32(1.0) + power)


@compiled()
def wide(bits: Any) -> Any:
    """bfloat16 as float32, of which it is the upper half."""
    return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)


@compiled()
def widen(source: Array, target: Array) -> None:
    """Copy into float32; bfloat16 is the upper half of a float32."""
    if source.itemsize == 2:
        words = target.view(np.uint32)
        for i in range(source.shape[0]):
            words[i] = np.uint32(source[i]) << np.uint32(16)
    else:
        for i in range(source.shape[0]):
            target[i] = source[i]


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
        rest = builder.srem(count, INT(LANES))
        whole = builder.sub(count, rest)

        def copy(at: Any, mask: Any) -> None:
            vector = emit.load(builder.gep(from_.data, [at]), mask)
            put = emit.store if target.dtype == types.float32 else emit.store_rounded
            put(vector, builder.gep(to.data, [at]), mask)

        with cgutils.for_range_slice(
            builder, INT(0), whole, INT(LANES), inc=True
        ) as at:
            copy(at[0], None)
        with builder.if_then(builder.icmp_signed("!=", rest, INT(0))):
            copy(whole, emit.mask(rest))
        return context.get_dummy_value()

    return types.void(source, target), generate
