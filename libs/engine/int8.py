"""Products of a few rows with int8 weights, and such weights as bfloat16 for many rows.

A weight of output o is its int8 times the float32 scale of o. An int8 is a bfloat16
exactly, so sums are those of bfloat16 weights (`engine.matmul`), and are scaled once.
"""

from typing import Any

import numpy as np
from numba import carray, types

from engine.compiled import compiled
from engine.elementwise import narrow
from engine.matmul import AT_ONCE, bits_at, put_gated, put_linear, span_of, sums_of
from engine.task import Task
from engine.vectors import Part, pointer_to

Array = Any
# Outputs of one task: as many bytes as of bfloat16. What is asked for ahead at its end is
# another thread's, so half as many outputs would read a third of the weights in vain.
INT8_TILE = 6 * AT_ONCE
_bytes_at, _floats_at = pointer_to(types.int8), pointer_to(types.float32)


@compiled()
def linear_int8_tile(
    x: int,
    weights: tuple[int, int],
    bias: int,
    y: int,
    shape: tuple[int, int, int],
    task: Task,
) -> bool:
    """y = scale * (x @ weight.T) + bias of one tile; weights are (weight, scale).

    By addresses: weight [outputs, inputs] int8, scale [outputs] float32; the others and
    shape as of `linear_tile`.
    """
    span = span_of(task.number, INT8_TILE, shape[2])
    sums = _scaled_sums(x, weights, shape, span)
    return put_linear(task, sums, bias, y, shape[2], (*span, 0))


@compiled()
def gated_int8_tile(
    x: int,
    gate: tuple[int, int],
    up: tuple[int, int],
    y: int,
    shape: tuple[int, int, int],
    curve_and_task: tuple[int, Task],
) -> bool:
    """As `gated_tile`, each of gate and up as (weight, scale)."""
    curve, task = curve_and_task
    span = span_of(task.number, INT8_TILE, shape[2])
    gates = _scaled_sums(x, gate, shape, span)
    ups = _scaled_sums(x, up, shape, span)
    return put_gated(task, (gates, ups), y, shape[2], curve, (*span, 0))


@compiled()
def dequantize_row(
    weight: int, scale: int, y: int, shape: tuple[int, int], output: int
) -> None:
    """y = scale * weight of one output, rounded to bfloat16; shape (outputs, inputs)."""
    source = carray(_bytes_at(weight), shape)[output]
    factor = carray(_floats_at(scale), shape[0])[output]
    values = np.empty(shape[1], np.float32)
    for j in range(shape[1]):
        values[j] = np.float32(source[j]) * factor
    narrow(values, carray(bits_at(y), shape)[output])


@compiled()
def _scaled_sums(
    x: int, of: tuple[int, int], shape: tuple[int, int, int], span: tuple[int, int]
) -> Array:
    (rows, depth, outputs), (first, width) = shape, span
    sums = sums_of(x, Part(_bytes_at(of[0]), 0, depth), shape, span)
    scales = carray(_floats_at(of[1]), outputs)[first : first + width]
    for row in range(rows):
        for j in range(width):
            sums[row, j] *= scales[j]
    return sums
