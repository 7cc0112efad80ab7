"""Equal prefixes that are asked for at once: one sequence computes, the others follow."""

from collections.abc import Iterator

import pytest
from jobs import GEOMETRY, held, prefill_job, step
from owning import admitted, adopted, announced, generated

from kv.operations import Queued, Record
from kvstore.store import Store
from protocol.messages import RequestId


@pytest.fixture
def store() -> Iterator[Store]:
    """A pool of ten blocks of four tokens; its invariants hold after each test."""
    store = Store(GEOMETRY, num_blocks=10, max_waiting=3)
    yield store
    store.check()


def followed(store: Store, *, num_tokens: int, num_follower_tokens: int) -> Record:
    """r1, owned by "a" and not computed yet; r2, which begins like it, waits for it."""
    leader = admitted(store, prefill_job("r1", num_tokens, max_tokens=6))
    follower = prefill_job("r2", num_follower_tokens, like="r1", max_tokens=6)
    assert isinstance(store.admit(follower, "b"), Queued)
    return leader


def test_a_prefix_in_the_making_is_not_computed_twice(store: Store) -> None:
    """
    A prompt that begins like one being computed waits, without blocks, and shares them.
    """
    leader = followed(store, num_tokens=12, num_follower_tokens=14)
    meanwhile = store.blocks.num_referenced

    store.advance([step(leader, 12, 50)], "a")

    (follower,) = adopted(store, "b")
    assert meanwhile == 3
    assert follower.block_table[:3] == leader.block_table
    assert (follower.num_computed_tokens, follower.num_cached_tokens) == (12, 12)


def test_a_follower_goes_as_soon_as_the_common_blocks_are_computed(
    store: Store,
) -> None:
    """
    It does not wait for the rest of the other's prompt, and not for less than it shares.
    """
    leader = followed(store, num_tokens=24, num_follower_tokens=10)

    store.advance([step(leader, 7)], "a")
    early = announced(store)
    store.advance([step(leader, 9)], "a")

    (follower,) = adopted(store, "b")
    assert early == []
    assert follower.num_cached_tokens == 8


def test_a_newcomer_joins_in_the_middle(store: Store) -> None:
    """
    Blocks that are done are shared from the cache; only for the next one is waited.
    """
    leader = admitted(store, prefill_job("r1", 16))
    store.advance([step(leader, 6)], "a")
    store.admit(prefill_job("r2", 9, like="r1"), "b")
    assert announced(store) == []

    store.advance([step(leader, 8)], "a")

    (follower,) = adopted(store, "b")
    assert follower.num_cached_tokens == 8


def test_another_salt_follows_nobody(store: Store) -> None:
    """
    That somebody computes the same right now must not be told by waiting for it either.
    """
    admitted(store, prefill_job("r1", 12, cache_salt="mine"))

    other = admitted(store, prefill_job("r2", 12, like="r1", cache_salt="yours"), "b")

    assert other.num_cached_tokens == 0


def test_equal_prompts_fork(store: Store) -> None:
    """
    All blocks are shared but the last: its begin is copied by who will write behind it.
    """
    leader = followed(store, num_tokens=6, num_follower_tokens=6)

    store.advance([step(leader, 6, 50)], "a")

    (follower,) = adopted(store, "b")
    shared, source = leader.block_table
    assert follower.block_table[0] == shared
    assert follower.copies == ((source, follower.block_table[1]),)
    assert follower.block_table[1] != source
    assert (follower.num_computed_tokens, follower.num_cached_tokens) == (5, 5)


def test_a_full_last_block_is_copied_too(store: Store) -> None:
    """
    The follower computes the last token for its logits, and so writes into that block.
    """
    leader = followed(store, num_tokens=8, num_follower_tokens=8)

    store.advance([step(leader, 8, 50)], "a")

    (follower,) = adopted(store, "b")
    assert follower.num_computed_tokens == 7
    assert follower.copies == ((leader.block_table[1], follower.block_table[1]),)


@pytest.mark.parametrize("num_tokens", [1, 5])
def test_where_only_the_last_token_is_left_nothing_is_copied(
    store: Store, num_tokens: int
) -> None:
    """
    A block that would begin with the follower's own token has nothing to copy.
    """
    leader = followed(store, num_tokens=num_tokens, num_follower_tokens=num_tokens)

    store.advance([step(leader, num_tokens, 50)], "a")

    (follower,) = adopted(store, "b")
    assert follower.copies == ()
    assert follower.block_table[:-1] == leader.block_table[: num_tokens // 4]


def test_the_source_is_kept_until_the_follower_s_first_step(store: Store) -> None:
    """
    Whatever becomes of the leader, nobody gets the block that is still to be copied.
    """
    leader = followed(store, num_tokens=6, num_follower_tokens=6)
    store.advance([step(leader, 6, 50)], "a")
    store.release([held(leader)], "a")
    (follower,) = adopted(store, "b")
    before = store.blocks.num_referenced

    store.advance([step(follower, 6, 50)], "b")

    assert before == 3
    assert store.blocks.num_referenced == 2


def test_a_copy_that_was_not_made_is_the_next_owner_s(store: Store) -> None:
    """
    An adopter that dies before its first step leaves the copy to do.
    """
    leader = followed(store, num_tokens=6, num_follower_tokens=6)
    store.advance([step(leader, 6, 50)], "a")
    (follower,) = adopted(store, "b")

    store.detach("b")

    (heir,) = adopted(store, "c")
    assert heir.copies == follower.copies


def test_many_follow_one(store: Store) -> None:
    """
    The choices of one request are computed once, and then each has its own last block.
    """
    leader = followed(store, num_tokens=7, num_follower_tokens=7)
    store.admit(prefill_job("r3", 7, like="r1"), "b")

    store.advance([step(leader, 7, 50)], "a")

    second, third = adopted(store, "b")
    assert second.block_table[0] == third.block_table[0] == leader.block_table[0]
    tables = (leader.block_table, second.block_table, third.block_table)
    assert len({table[1] for table in tables}) == 3


def test_without_room_for_the_copy_a_follower_waits_in_line(store: Store) -> None:
    """
    It computes the begin of the last block again, when there is room for it.
    """
    admitted(store, prefill_job("r0", 32))
    leader = followed(store, num_tokens=6, num_follower_tokens=6)
    store.advance([step(leader, 6, 50)], "a")
    early = announced(store)

    store.release([held(leader)], "a")

    (follower,) = adopted(store, "b")
    assert early == []
    assert (follower.num_computed_tokens, follower.copies) == (4, ())


def test_followers_go_on_without_a_cancelled_leader(store: Store) -> None:
    """
    They share what was computed until then, and one of them leads the others.
    """
    leader = followed(store, num_tokens=12, num_follower_tokens=12)
    store.admit(prefill_job("r3", 12, like="r1"), "b")
    store.cancel(leader.request_id)

    store.advance([step(leader, 5)], "a")

    (heir,) = adopted(store, "b")
    assert (heir.request_id, heir.num_cached_tokens) == ("r2", 4)
    store.advance([step(heir, 12, 50)], "b")
    (last,) = adopted(store, "b")
    assert (last.request_id, last.num_cached_tokens) == ("r3", 11)


def test_followers_go_on_when_a_leader_is_released_early(store: Store) -> None:
    """
    A leader whose gateway is gone does not leave its followers behind.
    """
    leader = followed(store, num_tokens=12, num_follower_tokens=12)

    store.forget([held(leader)], "a")

    assert [record.request_id for record in announced(store)] == ["r2"]


def test_followers_wait_for_the_heir_of_a_dead_worker(store: Store) -> None:
    """
    A leader whose worker died goes on elsewhere, and its followers still share with it.
    """
    leader = followed(store, num_tokens=12, num_follower_tokens=12)
    store.advance([step(leader, 5)], "a")
    store.detach("a")
    (heir,) = adopted(store, "b")

    store.advance([step(heir, 12, 50)], "b")

    assert heir.request_id == leader.request_id
    (follower,) = adopted(store, "b")
    assert follower.num_cached_tokens == 11


def test_followers_go_on_behind_a_preempted_leader(store: Store) -> None:
    """
    A leader that gives way computes its prompt again later, and is followed again.
    """
    older = generated(store, prefill_job("r0", 20, max_tokens=9), 4)
    leader = admitted(store, prefill_job("r1", 16))
    store.admit(prefill_job("r2", 14, like="r1"), "b")
    store.advance([step(leader, 5)], "a")
    store.advance([step(older, 24, 54)], "a")
    assert store.counts.preemptions == 1

    store.release([held(older)], "a")

    (again,) = adopted(store, "b")
    store.advance([step(again, 16, 50)], "b")
    (follower,) = adopted(store, "b")
    assert (again.request_id, again.num_computed_tokens) == ("r1", 4)
    assert (follower.request_id, follower.num_cached_tokens) == ("r2", 12)


def test_a_cancelled_follower_is_gone(store: Store) -> None:
    """
    Its leader computes on, and is followed by nobody.
    """
    leader = followed(store, num_tokens=6, num_follower_tokens=6)

    store.cancel(RequestId("r2"))
    store.advance([step(leader, 6, 50)], "a")

    assert announced(store) == []
    assert (store.num_waiting, store.blocks.num_referenced) == (0, 2)


def test_a_fork_that_is_cancelled_gives_back_the_source_too(store: Store) -> None:
    """
    With the follower goes its claim to the block that it wanted to copy.
    """
    leader = followed(store, num_tokens=6, num_follower_tokens=6)
    store.advance([step(leader, 6, 50)], "a")
    store.release([held(leader)], "a")

    store.cancel(RequestId("r2"))

    assert store.blocks.num_available == 10
