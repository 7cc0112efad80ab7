"""Products of 5 to 64 rows with a matrix, against float64."""

from collections.abc import Iterator

import pytest
import torch
from rounded import assert_rounded, exact, normal
from torch.nn.functional import gelu, silu
from triton_device import DEVICE

from engine.triton_rows import Activation
from engine.triton_skinny import (
    MAX_ROWS,
    ROWS,
    TILES,
    Shape,
    Tile,
    Workspace,
    add_skinny,
    skinny,
    skinny_gated,
    tiles,
)

# The interpreter computes by numpy, which warns of exponentials that become infinite.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

ALONE = Tile(outputs=64, inputs=16, num_stages=2, num_warps=4)
SHARED = ALONE._replace(num_splits=3)
SPLITS = [ALONE, SHARED]
# Outputs and inputs that no tile divides, less than one tile, and as many as two.
SHAPES = [(70, 100), (3, 7), (128, 64)]
SM_BYTES = 228 * 2**10  # of compute capability 9.0


@pytest.fixture(autouse=True)
def _poisoned() -> Iterator[None]:
    """Fresh memory is NaN: whoever leaves an element unwritten, shows it."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def space() -> Workspace:
    """Of any product here."""
    return Workspace(10**5, 10, torch.device(DEVICE))


@pytest.mark.parametrize("tile", SPLITS)
@pytest.mark.parametrize("num_rows", [5, 8, 13, MAX_ROWS])
@pytest.mark.parametrize("shape", SHAPES)
def test_products_are_those_of_float64(
    shape: tuple[int, int], num_rows: int, tile: Tile, space: Workspace
) -> None:
    """Of any number of outputs and inputs, with a bias and without."""
    weight, bias = normal(*shape), normal(shape[0])
    x = normal(1, num_rows, shape[1])

    found = [skinny(x, weight, tile, space), skinny(x, weight, tile, space, bias)]

    assert found[0].shape == (1, num_rows, shape[0])
    assert_rounded(found[0], exact(x, weight))
    assert_rounded(found[1], exact(x, weight, bias))


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("num_splits", [1, 4])
def test_every_tile_sums_all_inputs(
    tile: Tile, num_splits: int, space: Workspace
) -> None:
    """Several pieces of the weight, the last of them not whole."""
    x, weight = normal(16, 1100), normal(11, 1100)

    found = skinny(x, weight, tile._replace(num_splits=num_splits), space)

    assert_rounded(found, exact(x, weight))


@pytest.mark.parametrize("tile", SPLITS)
@pytest.mark.parametrize("shape", SHAPES)
def test_products_are_added_in_place(
    shape: tuple[int, int], tile: Tile, space: Workspace
) -> None:
    """To these rows and to no row beside them, with one rounding for product and sum."""
    x, weight = normal(6, shape[1]), normal(*shape)
    stream = normal(8, shape[0])
    before, rows = stream.clone(), stream[1:-1]
    expected = rows.double().cpu() + exact(x, weight)

    found = add_skinny(rows, x, weight, tile, space)

    assert found is rows
    assert_rounded(rows, expected)
    assert torch.equal(stream[[0, -1]], before[[0, -1]])


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("tile", SPLITS)
@pytest.mark.parametrize("shape", SHAPES)
def test_gates_and_ups_are_one_product(
    shape: tuple[int, int], tile: Tile, activation: Activation, space: Workspace
) -> None:
    """Their products, the activation and the answer are each rounded, as torch's are."""
    outputs, inputs = shape
    x, weight = normal(9, inputs) / 8, normal(2 * outputs, inputs)

    found = skinny_gated(x, weight, tile, space, activation)

    gates, ups = exact(x, weight).chunk(2, dim=-1)
    bent = silu(gates) if activation == "silu" else gelu(gates, approximate="tanh")
    assert found.shape == (9, outputs)
    torch.testing.assert_close(found.double().cpu(), bent * ups, rtol=0.04, atol=0.02)


def test_a_workspace_is_used_again() -> None:
    """
    The last program of a tile leaves its count at zero: the next product, of another shape,
    waits for all its programs too. Room for the larger of them is enough.
    """
    shapes = [Shape(130, 64, 8), Shape(40, 100, 16)]
    space = Workspace.of([(SHARED, each) for each in shapes], torch.device(DEVICE))
    space.sums.fill_(torch.nan)

    for shape in [*shapes, *shapes]:
        x, weight = normal(shape.rows, shape.inputs), normal(*shape[:2])
        assert_rounded(skinny(x, weight, SHARED, space), exact(x, weight))

        assert not space.arrived.any()


def test_rows_may_lie_apart(space: Workspace) -> None:
    """A part of wider rows, and columns of a matrix."""
    weight = normal(9, 40)
    part, turned = normal(7, 100)[:, 7:47], normal(40, 7).T

    found = [skinny(x, weight, SHARED, space) for x in (part, turned)]

    assert_rounded(found[0], exact(part, weight))
    assert_rounded(found[1], exact(turned, weight))


def test_no_rows_are_no_launch(space: Workspace) -> None:
    """A step without tokens answers with a tensor without rows."""
    assert skinny(normal(0, 40), normal(9, 40), ALONE, space).shape == (0, 9)


def test_programs_fill_the_multiprocessors() -> None:
    """
    A matrix of few tiles is split where all programs still run at once; one with tiles
    enough for several rounds is not.
    """
    few, many = Shape(4096, 4096, 8), Shape(128_256, 4096, 8)

    on_all, on_part = (tiles(few, num_sms, SM_BYTES) for num_sms in (132, 20))

    assert all(each.num_splits == 4 for each in on_all)
    assert all(each.num_splits < 4 for each in on_part)
    assert all(each.num_splits == 1 for each in tiles(many, 132, SM_BYTES))


@pytest.mark.parametrize("rows", ROWS)
def test_only_tiles_that_fit_are_taken(rows: int) -> None:
    """Every tile of gates and ups on a GPU with much shared memory, on others fewer."""
    shape = Shape(14336, 4096, rows, num_weights=2)

    assert len(tiles(shape, 132, SM_BYTES)) == len(TILES)
    assert not tiles(shape, 132, 64 * 2**10)
