"""Rows as float32, for processors that cannot multiply bfloat16 by pairs."""

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.compiled import compiled
from engine.compressed import bytes_at
from engine.compression import GROUP, GROUP_BYTES, compress, num_groups
from engine.emitter import LANES, PAIRS
from engine.matmul import bits_at
from engine.vectors import Part
from engine.widened import widen_row, widened

# Around a vector, what lies side by side, and a group.
DEPTHS = [1, 15, 32, 33, 127, 128, 350]


@compiled()
def widened_rows(address: int, shape: tuple[int, int]) -> np.ndarray:
    return widened(Part(bits_at(address), 0, shape[1]), shape)


@compiled()
def widen_plain(address: int, values: np.ndarray) -> None:
    widen_row(Part(bits_at(address), 0, 0), values)


@compiled()
def widen_coded(address: int, groups: int, values: np.ndarray) -> None:
    widen_row(Part(bytes_at(address), groups, 0), values)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).bfloat16()


@pytest.mark.parametrize("depth", DEPTHS)
def test_rows_become_float32_half_by_half(depth: int) -> None:
    """
    Of each sixteen pairs the even numbers come first, and zeros fill the last group:
    weights are multiplied by groups, and what is no number would spoil the sum.
    """
    x = normal(3, depth)

    found = torch.from_numpy(widened_rows(x.data_ptr(), (3, depth)))

    whole = torch.zeros(3, -(-depth // GROUP) * GROUP)
    whole[:, :depth] = x.float()
    pairs = whole.view(3, -1, LANES, 2)
    assert torch.equal(found, pairs.transpose(2, 3).reshape(3, -1))
    assert pairs[0, 0].numel() == PAIRS


@pytest.mark.parametrize("depth", DEPTHS)
def test_a_row_becomes_float32_in_order(depth: int) -> None:
    """
    Nothing is written behind it.
    """
    row, values = normal(depth), np.full(depth + 1, 7, np.float32)

    widen_plain(row.data_ptr(), values[:depth])

    assert torch.equal(torch.from_numpy(values[:depth]), row.float())
    assert values[depth] == 7


@pytest.mark.parametrize("depth", [128, 250, 350])
def test_a_compressed_row_becomes_float32_in_order(depth: int) -> None:
    """
    To the bit what was compressed, and nothing is written behind it.
    """
    row, values = normal(1, depth), np.full(depth + 1, 7, np.float32)
    rows = compress(row)
    assert rows is not None
    groups = rows.shape[1] - num_groups(depth) * GROUP_BYTES

    widen_coded(rows.data_ptr(), groups, values[:depth])

    is_kept = torch.from_numpy(values[:depth]) == row[0].float()
    assert is_kept.sum() >= depth - groups // 4  # exceptions are put elsewhere
    assert (torch.from_numpy(values[:depth])[~is_kept] == 0).all()
    assert values[depth] == 7
