"""Weights of bfloat16 in about three quarters of their bytes, exactly. Knows no product.

Of a weight's two bytes the lower one (the mantissa and a bit of the exponent) looks
random; the higher one (the sign and seven bits of the exponent) takes few values within
a row. So a row keeps a table of those, and four bits for each weight that say which.
Entropy codes (DFloat11, arXiv 2504.11651) save a little more; codes of one length are
looked up a vector at a time. A row of weights is

    [ exceptions: column, bits ]...[ table: 16 bytes ][ group ][ group ]...

and a group of GROUP weights is first their codes, then their lower bytes, both in the
order that `_PLACES` says. What is not in the table is an exception, and zero in its
group; all rows have room for as many exceptions as the one that has most.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numba import prange
from torch import Tensor, nn
from torch.nn.functional import linear

from engine.compiled import compiled

Array = Any
_ROWS = "weight_rows"

GROUP = 128
HALF = GROUP // 2
CODE_BYTES = HALF
GROUP_BYTES = CODE_BYTES + GROUP
TABLE_BYTES = 16
EXCEPTION_BYTES = 4
_COLUMNS = 2**16  # that an exception can name
_WORTH = 0.9  # of the bytes: what saves less stays as it is
# Where the halves of a group have their weights: two vectors of bytes, interleaved lane
# by lane, are 32 weights in order (lower halves of lanes) and the next 32.
_PLACES = np.array([16 * (i % 32 // 8) + 8 * (i // 32) + i % 8 for i in range(HALF)])


@compiled()
def num_groups(inputs: int) -> int:
    """Of a row; the last one is filled up with zeros."""
    return -(-inputs // GROUP)


def compress(weight: Tensor) -> Tensor | None:
    """A weight [outputs, inputs] of bfloat16 as bytes [outputs, bytes of a row].

    None where that would hardly be smaller, or an input has no pair.
    """
    outputs, inputs = weight.shape
    if inputs % 2 or inputs > _COLUMNS:
        return None
    bits = weight.contiguous().view(torch.uint16).numpy()
    tables = np.zeros((outputs, TABLE_BYTES), np.uint8)
    room = -(-int(_choose(bits, tables)) // 4) * 4
    first = room * EXCEPTION_BYTES + TABLE_BYTES
    row_bytes = first + num_groups(inputs) * GROUP_BYTES
    if row_bytes > _WORTH * 2 * inputs:
        return None
    rows = np.zeros((outputs, row_bytes), np.uint8)
    _encode(bits, tables, _PLACES, first, rows)
    return torch.from_numpy(rows)


def decompress(rows: Tensor, inputs: int) -> Tensor:
    """[outputs, inputs] in bfloat16, to the bit what was compressed."""
    bits = np.empty((len(rows), inputs), np.uint16)
    _decode(rows.numpy(), _PLACES, bits)
    return torch.from_numpy(bits).view(torch.bfloat16)


class CompressedLinear(nn.Module):
    """`nn.Linear` whose weights are compressed; what kernels of ours stand in for."""

    def __init__(self, of: nn.Linear) -> None:
        """With weights still to be bound, where those of `of` lie."""
        super().__init__()
        self.in_features, self.out_features = of.in_features, of.out_features
        rows = torch.empty(0, dtype=torch.uint8, device=of.weight.device)
        self.weight_rows = nn.Parameter(rows, requires_grad=False)
        self.bias = of.bias

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs]."""
        return linear(x, decompress(self.weight_rows, self.in_features), self.bias)


def compress_weights(model: Any, tensors: dict[str, Tensor]) -> None:
    """Put a model's compressed weights among its tensors, in place of what they are of.

    An embedding is read row by row and stays as it is; a last layer that shares its
    memory is read as a whole in every step, and gets weights of its own.
    """
    parameters = model.named_parameters(remove_duplicate=False)
    holders = Counter(id(parameter) for _, parameter in parameters)
    last = model.get_output_embeddings()
    for name, module in model.named_modules():
        if type(module) is not nn.Linear:
            continue
        if holders[id(module.weight)] > 1 and module is not last:
            continue
        rows = compress(module.weight)
        if rows is not None:
            del tensors[f"{name}.weight"]
            tensors[f"{name}.{_ROWS}"] = rows


def expect_compressed(model: nn.Module, names: Iterable[str]) -> None:
    """Make room in a skeleton for compressed weights, where these names have them."""
    for name in names:
        path, _, own = name.rpartition(".")
        if own == _ROWS:
            layer = model.get_submodule(path)
            assert isinstance(layer, nn.Linear), f"{path} is not a linear layer"
            model.set_submodule(path, CompressedLinear(layer))


@compiled(parallel=True)
def _choose(bits: Array, tables: Array) -> int:
    """Fill each row's table; answers how many exceptions a row has at most."""
    outputs, inputs = bits.shape
    misses = np.zeros(outputs, np.int64)
    for output in prange(outputs):
        counts = np.zeros(256, np.int64)
        for j in range(inputs):
            counts[bits[output, j] >> 8] += 1
        misses[output] = inputs - counts[0]
        counts[0] = 0  # the table's first entry is zero, always
        for entry in range(1, TABLE_BYTES):
            most = 0
            for value in range(256):
                if counts[value] > counts[most]:
                    most = value
            misses[output] -= counts[most]
            counts[most] = 0
            tables[output, entry] = most
    return int(misses.max())


@compiled(parallel=True)
def _encode(bits: Array, tables: Array, places: Array, first: int, rows: Array) -> None:
    outputs, inputs = bits.shape
    for output in prange(outputs):
        row, table = rows[output], tables[output]
        row[first - TABLE_BYTES : first] = table
        codes = np.full(256, -1, np.int64)
        for entry in range(TABLE_BYTES):
            if entry == 0 or table[entry] > 0:
                codes[table[entry]] = entry
        end = 0
        for begin in range(0, inputs, HALF):
            code_at, lower_at, shift = _half(first, begin)
            for i in range(min(HALF, inputs - begin)):
                word = int(bits[output, begin + i])
                code = codes[word >> 8]
                if code < 0:
                    _put(row, end, begin + i)
                    _put(row, end + 2, word)
                    end += EXCEPTION_BYTES
                else:
                    row[code_at + places[i]] |= code << shift
                    row[lower_at + places[i]] = word & 255


@compiled(parallel=True)
def _decode(rows: Array, places: Array, bits: Array) -> None:
    outputs, inputs = bits.shape
    first = rows.shape[1] - num_groups(inputs) * GROUP_BYTES
    for output in prange(outputs):
        row = rows[output]
        for begin in range(0, inputs, HALF):
            code_at, lower_at, shift = _half(first, begin)
            for i in range(min(HALF, inputs - begin)):
                code = (row[code_at + places[i]] >> shift) & 15
                higher = int(row[first - TABLE_BYTES + code])
                bits[output, begin + i] = higher << 8 | row[lower_at + places[i]]
        for at in range(0, first - TABLE_BYTES, EXCEPTION_BYTES):
            word = _number(row, at + 2)
            if word == 0:
                break
            bits[output, _number(row, at)] = word


@compiled()
def _half(first: int, column: int) -> tuple[int, int, int]:
    """Where half a group has its codes and lower bytes, and which bits of the codes."""
    group, half = divmod(column // HALF, 2)
    start = first + group * GROUP_BYTES
    return start, start + CODE_BYTES + half * HALF, 4 * half


@compiled()
def _put(row: Array, at: int, number: int) -> None:
    row[at], row[at + 1] = number & 255, number >> 8


@compiled()
def _number(row: Array, at: int) -> int:
    return int(row[at]) | int(row[at + 1]) << 8
