"""One row of activations, in one pass where transformers makes several."""

from typing import Any

import numpy as np
from numba import carray

from engine.compiled import compiled
from engine.elementwise import gate_row, narrow, wide, widen
from engine.matmul import bits_at

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
    source, scales = carray(bits_at(x), shape)[row], carray(bits_at(weight), dim)
    total = np.float32(0.0)
    for j in range(dim):
        value = wide(source[j])
        total += value * value
    factor = np.float32(1.0) / np.sqrt(total / np.float32(dim) + epsilon)
    values = np.empty(dim, np.float32)
    for j in range(dim):
        values[j] = wide(source[j]) * (factor * (wide(scales[j]) + offset))
    narrow(values, carray(bits_at(y), shape)[row])


@compiled()
def add_row(a: int, b: int, y: int, shape: tuple[int, int], row: int) -> None:
    """y = a + b of one row, all [rows, dim] of bfloat16, by their addresses."""
    dim = shape[1]
    left, right = carray(bits_at(a), shape)[row], carray(bits_at(b), shape)[row]
    sums = np.empty(dim, np.float32)
    for j in range(dim):
        sums[j] = wide(left[j]) + wide(right[j])
    narrow(sums, carray(bits_at(y), shape)[row])


@compiled()
def rotate_token(
    x: int, y: int, angles: tuple[int, int], shape: tuple[int, int, int], token: int
) -> None:
    """Rotary position embedding (arXiv 2104.09864) of one token's heads.

    x and y are [tokens, heads, dim], angles are (cos, sin) [tokens, dim]; bfloat16 by
    addresses. Halves of a head are rotated against each other, as in transformers.
    """
    tokens, heads, dim = shape
    half = dim // 2
    cos = carray(bits_at(angles[0]), (tokens, dim))[token]
    sin = carray(bits_at(angles[1]), (tokens, dim))[token]
    source, target = carray(bits_at(x), shape)[token], carray(bits_at(y), shape)[token]
    rotated = np.empty(dim, np.float32)
    for head in range(heads):
        for j in range(half):
            k = j + half
            first, second = wide(source[head, j]), wide(source[head, k])
            rotated[j] = first * wide(cos[j]) - second * wide(sin[j])
            rotated[k] = second * wide(cos[k]) + first * wide(sin[k])
        narrow(rotated, target[head])


@compiled()
def gate_rows(
    gate: int, up: int, y: int, shape: tuple[int, int], curve: int, row: int
) -> None:
    """y = activation(gate) * up of one row, all [rows, dim] of bfloat16."""
    dim = shape[1]
    gates, ups = np.empty(dim, np.float32), np.empty(dim, np.float32)
    widen(carray(bits_at(gate), shape)[row], gates)
    widen(carray(bits_at(up), shape)[row], ups)
    gate_row(gates, ups, curve)
    narrow(gates, carray(bits_at(y), shape)[row])


@compiled()
def copy_row(x: int, y: int, dim: int, rows: tuple[int, int]) -> None:
    """One row of x to one of y, (from, to), both [.., dim] of bfloat16."""
    source = carray(bits_at(x), (rows[0] + 1, dim))[rows[0]]
    target = carray(bits_at(y), (rows[1] + 1, dim))[rows[1]]
    for j in range(dim):
        target[j] = source[j]
