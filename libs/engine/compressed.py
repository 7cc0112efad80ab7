"""Products of a few rows with weights of `engine.compression`, read as they lie.

Otherwise as `engine.matmul`, whose sums these are but for the order of what is added:
exceptions come last.
"""

from typing import Any

import numpy as np
from numba import carray, types

from engine.compiled import compiled
from engine.compression import GROUP_BYTES, TABLE_BYTES, num_groups
from engine.matmul import (
    AT_ONCE,
    TILE,
    bits_at,
    put_gated,
    put_linear,
    span_of,
    sums_of,
)
from engine.task import Task
from engine.vectors import Part, pointer_to
from engine.widened import WIDENS

Array = Any
bytes_at = pointer_to(types.uint8)
# Bytes of weights that are one task of few rows, and how many tasks a product has where it
# can: memory is fastest when it is read in a row, and the last task is waited for.
_LEAST_BYTES, _MOST_BYTES, _TASKS = 2**16, 2**18, 16


@compiled()
def compressed_tile(outputs: int, row_bytes: int) -> int:
    """Outputs of one task."""
    least, most = _LEAST_BYTES // row_bytes, _MOST_BYTES // row_bytes
    size = -(-max(least, min(outputs // _TASKS, most), 1) // AT_ONCE) * AT_ONCE
    return max(size, TILE) if WIDENS else size


@compiled()
def linear_compressed_tile(
    x: int,
    weight: int,
    bias: int,
    y: int,
    shape: tuple[int, int, int, int],
    task: Task,
) -> bool:
    """As `linear_tile`; shape is (rows, inputs, outputs, bytes of a row of weights)."""
    sizes, row_bytes = shape[:3], shape[3]
    span = span_of(task.number, compressed_tile(sizes[2], row_bytes), sizes[2])
    sums = _sums(x, (weight, row_bytes), sizes, span)
    return put_linear(task, sums, bias, y, sizes[2], (*span, 0))


@compiled()
def gated_compressed_tile(
    x: int,
    gate: tuple[int, int],
    up: tuple[int, int],
    y: int,
    shape: tuple[int, int, int],
    curve_and_task: tuple[int, Task],
) -> bool:
    """As `gated_tile`, each of gate and up as (weight, bytes of a row)."""
    curve, task = curve_and_task
    span = span_of(task.number, compressed_tile(shape[2], gate[1]), shape[2])
    both = _sums(x, gate, shape, span), _sums(x, up, shape, span)
    return put_gated(task, both, y, shape[2], curve, (*span, 0))


@compiled()
def _sums(
    x: int, of: tuple[int, int], shape: tuple[int, int, int], span: tuple[int, int]
) -> Array:
    (weight, row_bytes), (rows, inputs, outputs), (first, width) = of, shape, span
    groups = row_bytes - num_groups(inputs) * GROUP_BYTES
    sums = sums_of(x, Part(bytes_at(weight), groups, row_bytes), shape, span)
    words = carray(bits_at(weight), (outputs, row_bytes // 2))
    left = carray(bits_at(x), (rows, inputs))
    for j in range(width):
        if words[first + j, 1] != 0:  # few have any
            exceptions = words[first + j, : (groups - TABLE_BYTES) // 2]
            _add_exceptions(sums[:, j], left, exceptions)
    return sums


@compiled()
def _add_exceptions(sums: Array, x: Array, exceptions: Array) -> None:
    """To one output of all rows."""
    for at in range(0, len(exceptions), 2):
        column, bits = exceptions[at], exceptions[at + 1]
        if bits == 0:
            break
        for row in range(len(sums)):
            sums[row] += _wide(x[row, column]) * _wide(bits)


@compiled()
def _wide(bits: Any) -> Any:
    """bfloat16 as float32, of which it is the upper half."""
    return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)
