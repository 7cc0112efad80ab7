"""Products of few rows with a matrix, against float64."""

from collections.abc import Iterator

import pytest
import torch
from rounded import assert_rounded, exact, normal
from torch.nn.functional import gelu, silu

from engine.triton_linear import (
    MAX_ROWS,
    TILINGS,
    Tiling,
    add_few_rows,
    few_gated_rows,
    few_rows,
)
from engine.triton_rows import Activation

# The interpreter computes by numpy, which warns of exponentials that become infinite.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

SMALL = Tiling(outputs=8, inputs=64, num_warps=1)
# Outputs and inputs that no tile divides, less than one tile, and as many as one.
SHAPES = [(37, 100), (3, 7), (8, 64)]


@pytest.fixture(autouse=True)
def _poisoned() -> Iterator[None]:
    """Fresh memory is NaN: whoever leaves an element unwritten, shows it."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("num_rows", range(1, MAX_ROWS + 1))
@pytest.mark.parametrize("shape", SHAPES)
def test_products_are_those_of_float64(shape: tuple[int, int], num_rows: int) -> None:
    """Of any number of outputs and inputs, with a bias and without."""
    weight, bias = normal(*shape), normal(shape[0])
    x = normal(1, num_rows, shape[1])

    found = few_rows(x, weight, SMALL), few_rows(x, weight, SMALL, bias)

    assert found[0].shape == (1, num_rows, shape[0])
    assert_rounded(found[0], exact(x, weight))
    assert_rounded(found[1], exact(x, weight, bias))


def test_products_are_those_of_a_real_model_s_shape() -> None:
    """Qwen2.5-0.5B's inputs, which are not a power of two."""
    x, weight, bias = normal(4, 896), normal(151, 896), normal(151)

    found = few_rows(x, weight, Tiling(16, 512, 4), bias)

    assert_rounded(found, exact(x, weight, bias))


@pytest.mark.parametrize("tiling", TILINGS)
def test_every_tiling_sums_all_inputs(tiling: Tiling) -> None:
    """Several pieces of the weight, the last of them not whole."""
    x, weight = normal(2, 4500), normal(11, 4500)

    found = few_rows(x, weight, tiling)

    assert_rounded(found, exact(x, weight))


@pytest.mark.parametrize("num_rows", range(1, MAX_ROWS + 1))
@pytest.mark.parametrize("shape", SHAPES)
def test_products_are_added_in_place(shape: tuple[int, int], num_rows: int) -> None:
    """To these rows and to no row beside them, with one rounding for product and sum."""
    x, weight = normal(num_rows, shape[1]), normal(*shape)
    stream = normal(num_rows + 2, shape[0])
    before, rows = stream.clone(), stream[1:-1]
    expected = rows.double().cpu() + exact(x, weight)

    found = add_few_rows(rows, x, weight, SMALL)

    assert found is rows
    assert_rounded(rows, expected)
    assert torch.equal(stream[[0, -1]], before[[0, -1]])


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("num_rows", range(1, MAX_ROWS + 1))
@pytest.mark.parametrize("shape", SHAPES)
def test_gates_and_ups_are_one_product(
    shape: tuple[int, int], num_rows: int, activation: Activation
) -> None:
    """Their products, the activation and the answer are each rounded, as torch's are."""
    outputs, inputs = shape
    x, weight = normal(num_rows, inputs) / 8, normal(2 * outputs, inputs)

    found = few_gated_rows(x, weight, SMALL, activation)

    gates, ups = exact(x, weight).chunk(2, dim=-1)
    bent = silu(gates) if activation == "silu" else gelu(gates, approximate="tanh")
    assert found.shape == (num_rows, outputs)
    torch.testing.assert_close(found.double().cpu(), bent * ups, rtol=0.04, atol=0.02)


def test_rows_may_lie_apart() -> None:
    """A part of wider rows, and columns of a matrix."""
    weight = normal(9, 40)
    part, turned = normal(3, 100)[:, 7:47], normal(40, 3).T

    found = few_rows(part, weight, SMALL), few_rows(turned, weight, SMALL)

    assert_rounded(found[0], exact(part, weight))
    assert_rounded(found[1], exact(turned, weight))


def test_no_rows_are_no_launch() -> None:
    """A step without tokens answers with a tensor without rows."""
    assert few_rows(normal(0, 40), normal(9, 40), SMALL).shape == (0, 9)
