"""Several rows by weights that are widened once, against float64 and against fewer."""

import numpy as np
import pytest
import torch
from numba import types
from torch import Tensor

from engine.compiled import compiled
from engine.compressed import bytes_at
from engine.compression import GROUP_BYTES, TABLE_BYTES, compress, num_groups
from engine.matmul import bits_at
from engine.several import OUTPUTS, RUN, SEVERAL, fill_by_several
from engine.vectors import Part, pointer_to

int8_at = pointer_to(types.int8)
# Around a step, and around what is packed at once.
DEPTHS = [1, 31, 33, 128, RUN, RUN + 2, 2 * RUN + 40]
MANY = 3 * SEVERAL


@compiled()
def by_plain(x: int, weight: int, sums: np.ndarray, depth: int) -> None:
    fill_by_several(
        sums, Part(bits_at(x), 0, depth), Part(bits_at(weight), 0, depth), depth
    )


@compiled()
def by_int8(x: int, weight: int, sums: np.ndarray, depth: int) -> None:
    fill_by_several(
        sums, Part(bits_at(x), 0, depth), Part(int8_at(weight), 0, depth), depth
    )


@compiled()
def by_coded(
    x: int, weight: int, sums: np.ndarray, sizes: tuple[int, int, int]
) -> None:
    depth, first, row_bytes = sizes
    right = Part(bytes_at(weight), first, row_bytes)
    fill_by_several(sums, Part(bits_at(x), 0, depth), right, depth)


def normal(seed: int, *shape: int) -> Tensor:
    numbers = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=numbers).bfloat16()


def plain(x: Tensor, weight: Tensor) -> Tensor:
    sums = np.full((len(x), len(weight)), np.nan, np.float32)
    by_plain(x.data_ptr(), weight.data_ptr(), sums, x.shape[1])
    return torch.from_numpy(sums)


def assert_near(found: Tensor, exact: Tensor) -> None:
    """As near as sums in float32 come."""
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("outputs", [OUTPUTS, OUTPUTS + 1, 3 * OUTPUTS - 1])
@pytest.mark.parametrize("rows", [SEVERAL, SEVERAL + 1, SEVERAL + 2, MANY])
def test_product_is_that_of_float64(rows: int, outputs: int, depth: int) -> None:
    """
    Whatever is left over of rows, outputs and inputs.
    """
    x, weight = normal(1, rows, depth), normal(2, outputs, depth)

    found = plain(x, weight)

    assert_near(found, x.double() @ weight.double().T)


@pytest.mark.parametrize("depth", DEPTHS)
def test_product_with_int8_is_that_of_float64(depth: int) -> None:
    """
    Weights of int8 are widened as well.
    """
    numbers = torch.Generator().manual_seed(1)
    weight = torch.randint(-128, 128, (8, depth), dtype=torch.int8, generator=numbers)
    x, sums = normal(2, MANY, depth), np.empty((MANY, 8), np.float32)

    by_int8(x.data_ptr(), weight.data_ptr(), sums, depth)

    exact = x.double() @ weight.double().T
    torch.testing.assert_close(
        torch.from_numpy(sums).double(), exact, rtol=1e-4, atol=0.1
    )


@pytest.mark.parametrize("depth", [256, RUN, RUN + 130, 2 * RUN + 40])
def test_product_with_groups_is_that_of_their_weights(depth: int) -> None:
    """
    Compressed weights answer to the bit what they do uncompressed.

    Powers of two fit into a table, so there are no exceptions.
    """
    numbers = torch.Generator().manual_seed(1)
    powers = torch.randint(-3, 4, (7, depth), generator=numbers)
    weight, x = torch.exp2(powers).bfloat16(), normal(2, MANY, depth)
    rows = compress(weight)
    assert rows is not None

    sums = np.empty((MANY, 7), np.float32)
    first = rows.shape[1] - num_groups(depth) * GROUP_BYTES
    assert first >= TABLE_BYTES
    by_coded(x.data_ptr(), rows.data_ptr(), sums, (depth, first, rows.shape[1]))

    assert torch.equal(torch.from_numpy(sums), plain(x, weight))


def test_a_row_does_not_depend_on_its_company() -> None:
    """
    Nor on which tile it is in.
    """
    x, weight = normal(1, MANY, RUN + 70), normal(2, 10, RUN + 70)

    together = plain(x, weight)

    for first in range(MANY - SEVERAL + 1):
        some = x[first : first + SEVERAL].contiguous()
        assert torch.equal(plain(some, weight), together[first : first + SEVERAL])
    assert torch.equal(plain(x, weight[4:8].contiguous()), together[:, 4:8])


def test_broken_row_spoils_no_other() -> None:
    """
    One sequence's NaN stays in its own row.
    """
    x, weight = normal(1, MANY, 50), normal(2, 10, 50)
    x[4, 49] = torch.nan

    found = plain(x, weight)

    others = [row for row in range(MANY) if row != 4]
    assert found[4].isnan().all()
    assert found[others].isfinite().all()
