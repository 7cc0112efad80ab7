"""The block pool: every block is somewhere, and only once."""

import pytest

from kvstore.blocks import BlockPool
from protocol.block_hash import BlockHash

HASHES = [BlockHash(bytes([number])) for number in range(4)]


def cached(pool: BlockPool, count: int) -> list[int]:
    """A chain of blocks that nobody uses and that may be shared."""
    chain = pool.take(count)
    for block, hash in zip(chain, HASHES, strict=False):
        pool.publish(block, hash)
    pool.release(chain)
    return chain


def test_taken_blocks_are_referenced() -> None:
    """
    What was taken is one user's, and no longer free.
    """
    pool = BlockPool(10)

    taken = pool.take(4)

    assert len(set(taken)) == 4
    assert (pool.num_free, pool.num_cached, pool.num_referenced) == (6, 0, 4)
    pool.check(dict.fromkeys(taken, 1))


def test_released_blocks_are_free_again() -> None:
    """
    A block that was never full is of no use to others: it is free.
    """
    pool = BlockPool(8)
    taken = pool.take(3)

    pool.release(taken)

    assert (pool.num_free, pool.num_available) == (8, 8)
    pool.check({})


def test_full_blocks_are_cached_when_nobody_uses_them() -> None:
    """
    A published block can be found by its hash after its last user is gone.
    """
    pool = BlockPool(8)

    chain = cached(pool, 3)

    assert (pool.num_free, pool.num_cached, pool.num_available) == (5, 3, 8)
    assert pool.find(HASHES) == chain
    pool.check({})


def test_a_prefix_ends_at_the_first_unknown_block() -> None:
    """
    What lies behind a gap is not found: its K/V belongs to a prefix that is not here.
    """
    pool = BlockPool(8)
    first, third = pool.take(2)

    pool.publish(first, HASHES[0])
    pool.publish(third, HASHES[2])

    assert pool.find(HASHES) == [first]


def test_a_shared_block_is_kept_until_its_last_user_is_gone() -> None:
    """
    Each of two users gives the block back; only then it may be evicted.
    """
    pool = BlockPool(2)
    (block,) = cached(pool, 1)
    pool.share([block])
    pool.share([block])

    pool.release([block])

    assert (pool.num_cached, pool.num_available) == (0, 1)
    pool.check({block: 1})


def test_free_blocks_are_taken_before_cached_ones() -> None:
    """
    Nothing is evicted while there is a block that nobody could want.
    """
    pool = BlockPool(4)
    chain = cached(pool, 2)

    pool.take(2)

    assert pool.find(HASHES) == chain


def test_the_tail_of_a_chain_is_evicted_first() -> None:
    """
    An earlier block is of use without the later ones, but not the other way round.
    """
    pool = BlockPool(3)
    chain = cached(pool, 3)

    taken = pool.take(2)

    assert taken == [chain[2], chain[1]]
    assert pool.find(HASHES) == chain[:1]


def test_the_first_of_two_equal_blocks_is_shared() -> None:
    """
    Two sequences that computed the same have one block each; only one gets a name.
    """
    pool = BlockPool(4)
    first, second = pool.take(2)
    pool.publish(first, HASHES[0])
    pool.publish(second, HASHES[0])

    pool.release([first, second])

    assert (pool.num_free, pool.num_cached) == (3, 1)
    assert pool.find(HASHES) == [first]
    pool.check({})


def test_a_quarantined_block_is_nobody_s_until_its_writer_is_gone() -> None:
    """
    What a lost worker may still write to is neither free nor to be taken.
    """
    pool = BlockPool(4)
    pool.quarantine(pool.take(3), "a")
    during = (pool.num_free, pool.num_available, pool.num_quarantined)

    pool.lift_quarantine("b")
    still = pool.num_quarantined
    pool.lift_quarantine("a")

    assert during == (1, 1, 3)
    assert still == 3
    assert (pool.num_free, pool.num_quarantined) == (4, 0)
    pool.check({})


def test_a_quarantined_block_may_be_read_longer_than_its_writer_lives() -> None:
    """
    Who still copies from a block keeps it, quarantined or not.
    """
    pool = BlockPool(2)
    (block,) = pool.take(1)
    pool.share([block])
    pool.quarantine([block], "a")

    pool.lift_quarantine("a")

    assert (pool.num_quarantined, pool.num_free) == (0, 1)
    pool.check({block: 1})


def test_a_block_freed_twice_is_noticed() -> None:
    """
    Giving back what one does not have is a programmer's mistake, and caught at once.
    """
    pool = BlockPool(2)
    (block,) = pool.take(1)
    pool.release([block])

    with pytest.raises(AssertionError, match="freed twice"):
        pool.release([block])


def test_the_check_finds_a_lost_block() -> None:
    """
    A block that no table has and that is not free is a leak, and the check says so.
    """
    pool = BlockPool(3)
    pool.take(1)

    with pytest.raises(AssertionError, match="reference counts differ"):
        pool.check({})
