"""Tensors of a recorded step lie where nobody else's do, for as long as they are read."""

from itertools import combinations, pairwise

import pytest
import torch
from torch import Tensor

from engine.arena import Arena
from engine.operations import Kind, Unit
from engine.recorder import Eager, Native, Unrecordable
from engine.sizes import Sizes

RECORDED = Sizes(7, 5)


def rows(count: int = 7, dim: int = 4) -> Tensor:
    return torch.empty(1, count, dim, dtype=torch.bfloat16)


def added(a: Tensor, b: Tensor, y: Tensor) -> Native:
    return Native(Kind.ADD, a.shape[1], (a, b, y), (a.shape[2],))


def laid_out(operations: list[Native], sizes: Sizes) -> Arena:
    arena = Arena(operations, RECORDED)
    assert arena.makes_room(sizes)
    return arena


def test_tensors_that_are_read_together_do_not_overlap() -> None:
    """
    A chain of sums: what an operation reads and what it writes are apart, and a place is
    used again once nobody reads what was there.
    """
    tensors = [rows() for _ in range(12)]
    chain = [added(a, a, y) for a, y in pairwise(tensors)]
    arena = laid_out(chain, Sizes(100, 1))

    for operation in chain[1:]:
        spans = {(s.start, s.stop) for s in map(arena.span, operation.operands)}
        for (start, end), (other, other_end) in combinations(spans, 2):
            assert end <= other or other_end <= start
    size = len(arena.span(tensors[1]))
    assert arena._memory.numel() < 3 * size


def test_views_have_the_sizes_of_the_step() -> None:
    """
    A recorded size is as many as there are tokens, or sampled ones; others stay.
    """
    x, y, picked = rows(), rows(), rows(5)
    operations = [added(x, x, y), Native(Kind.PICK, 5, (y, picked), (4, 0))]
    arena = laid_out(operations, Sizes(100, 3))

    for sizes in (Sizes(100, 3), Sizes(9, 0)):
        assert arena.view(y, sizes).shape == (1, sizes.tokens, 4)
        assert arena.view(picked, sizes).shape == (1, sizes.sampled, 4)
    assert arena.view(x, Sizes(100, 3)) is None, "nobody writes it"
    assert arena.address(x) == x.data_ptr()
    assert arena.address(y) == arena.view(y, Sizes(100, 3)).data_ptr()


def test_a_transposed_tensor_stays_transposed() -> None:
    """
    An operation of torch may leave its answer in another order, which the next one reads.
    """
    y = torch.empty(1, 7, 2, 8, dtype=torch.bfloat16).transpose(1, 2)
    source = torch.empty(1, 2, 7, 8)
    cast = Eager(torch.ops.aten._to_copy.default, (source,), {}, y)
    read = y.transpose(1, 2)
    stored = Native(Kind.STORE, 7, (read, read), (2, 8, 8, 0, 0))
    arena = laid_out([cast, stored], Sizes(20, 1))

    view = arena.view(y, Sizes(20, 1))

    assert view.shape == (1, 2, 20, 8)
    assert view.transpose(1, 2).is_contiguous()


def test_room_grows_and_is_kept() -> None:
    """
    Nothing moves for a step that fits; a longer one has everything laid out anew.
    """
    x, y = rows(), rows()
    arena = laid_out([added(x, x, y)], Sizes(50, 1))
    place = arena.address(y)

    assert not arena.makes_room(Sizes(50, 1))
    assert not arena.makes_room(Sizes(3, 0))
    assert arena.address(y) == place
    assert arena.makes_room(Sizes(5000, 1))
    assert len(arena.span(y)) >= 5000 * 4 * 2


def test_parts_and_gaps_are_refused() -> None:
    """
    Where an operation reads half of what another one wrote is nobody's guess.
    """
    x, y = rows(), rows()
    half = y.flatten()[14:]
    with pytest.raises(Unrecordable, match="part"):
        Arena(
            [
                added(x, x, y),
                added(x, x, rows()),
                Native(Kind.PACK, 7, (half, x), (2,)),
            ],
            RECORDED,
        )

    gaps = torch.empty(1, 7, 8, dtype=torch.bfloat16)[..., :4]
    with pytest.raises(Unrecordable, match="gaps"):
        Arena([added(x, x, gaps)], RECORDED)


def test_rows_are_counted_in_units() -> None:
    """
    Rows are tokens, a multiple of them, sampled ones, or as many as they were.
    """
    assert RECORDED.units(7) == (Unit.TOKENS, 1)
    assert RECORDED.units(28) == (Unit.TOKENS, 4)
    assert RECORDED.units(10) == (Unit.SAMPLED, 2)
    assert RECORDED.units(9) == (Unit.ONE, 9)


def test_only_whole_numbers_are_sizes() -> None:
    """
    A truth, a fraction and another number mean in each step what they meant.
    """
    to = Sizes(70, 50)

    assert [RECORDED.scaled(value, to) for value in (7, 5, 8, 7.0, True, None)] == [
        70,
        50,
        8,
        7.0,
        True,
        None,
    ]
