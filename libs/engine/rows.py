"""Passes over the rows of activations, each of which transformers makes in several."""

from typing import Any

import numpy as np
from numba import carray, prange

from engine.compiled import compiled
from engine.elementwise import gate_row, narrow, widen
from engine.matmul import bits_at

Array = Any


@compiled()
def normalize(
    x: int, weight: int, y: int, shape: tuple[int, int], epsilon: float, offset: float
) -> None:
    """y = x / sqrt(mean(x^2) + epsilon) * (weight + offset) of each row, bfloat16.

    RMSNorm (arXiv 1910.07467, equation 4); Gemma's weights count from one. By
    addresses; x and y are [rows, dim], weight is [dim].
    """
    rows, dim = shape
    scales = _scales(weight, dim, offset)
    for row in range(rows):
        _normalize_row(x, y, row, shape, scales, epsilon)


@compiled(parallel=True)
def normalize_many(
    x: int, weight: int, y: int, shape: tuple[int, int], epsilon: float, offset: float
) -> None:
    """The same on all threads: worth their start from some dozens of rows."""
    rows, dim = shape
    scales = _scales(weight, dim, offset)
    for row in prange(rows):
        _normalize_row(x, y, np.int64(row), shape, scales, epsilon)


@compiled()
def _scales(weight: int, dim: int, offset: float) -> Array:
    scales = np.empty(dim, np.float32)
    widen(carray(bits_at(weight), dim), scales)
    for j in range(dim):
        scales[j] += np.float32(offset)
    return scales


@compiled()
def _normalize_row(
    x: int, y: int, row: int, shape: tuple[int, int], scales: Array, epsilon: float
) -> None:
    dim = shape[1]
    values = np.empty(dim, np.float32)
    widen(carray(bits_at(x), shape)[row], values)
    total = np.float32(0.0)
    for j in range(dim):
        total += values[j] * values[j]
    factor = np.float32(1.0) / np.sqrt(total / np.float32(dim) + np.float32(epsilon))
    for j in range(dim):
        values[j] *= factor * scales[j]
    narrow(values, carray(bits_at(y), shape)[row])


@compiled(parallel=True)
def activate(gate: int, up: int, y: int, shape: tuple[int, int], curve: int) -> None:
    """y = activation(gate) * up, all [rows, dim] of bfloat16, by their addresses."""
    rows, dim = shape
    for row in prange(rows):
        gates, ups = np.empty(dim, np.float32), np.empty(dim, np.float32)
        widen(carray(bits_at(gate), shape)[row], gates)
        widen(carray(bits_at(up), shape)[row], ups)
        gate_row(gates, ups, curve)
        narrow(gates, carray(bits_at(y), shape)[row])
