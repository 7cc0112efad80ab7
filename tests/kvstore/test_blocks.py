"""The block pool: every block is somewhere, and only once."""

import pytest

from kvstore.blocks import BlockPool


def test_a_promise_that_does_not_fit_is_refused() -> None:
    """
    Room is promised only as far as no one else was promised it.
    """
    pool = BlockPool(10)

    assert pool.reserve(7)
    assert not pool.reserve(4)

    assert pool.reserve(3)
    assert pool.num_unpromised == 0


def test_blocks_come_out_of_the_promise() -> None:
    """
    Taking blocks turns promised room into referenced blocks, and changes no one else's.
    """
    pool = BlockPool(10)
    pool.reserve(6)

    taken = pool.take_reserved(4)

    assert len(set(taken)) == 4
    assert (pool.num_free, pool.num_reserved, pool.num_referenced) == (6, 2, 4)
    pool.check([taken])


def test_released_blocks_are_free_again() -> None:
    """
    A pool is whole again when every sequence has given back blocks and promise.
    """
    pool = BlockPool(8)
    pool.reserve(5)
    taken = pool.take_reserved(3)

    pool.release(taken)
    pool.unreserve(2)

    assert (pool.num_free, pool.num_unpromised) == (8, 8)
    pool.check([])


def test_a_block_freed_twice_is_noticed() -> None:
    """
    Giving back what one does not have is a programmer's mistake, and caught at once.
    """
    pool = BlockPool(2)
    pool.reserve(1)
    (block,) = pool.take_reserved(1)
    pool.release([block])

    with pytest.raises(AssertionError, match="freed twice"):
        pool.release([block])


def test_the_check_finds_a_lost_block() -> None:
    """
    A block that no table has and that is not free is a leak, and the check says so.
    """
    pool = BlockPool(3)
    pool.reserve(1)
    pool.take_reserved(1)

    with pytest.raises(AssertionError, match="reference counts differ"):
        pool.check([])
