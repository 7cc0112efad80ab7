"""A worker that hangs: others go on with what it held, and it may write as it likes."""

from collections.abc import Iterator

import pytest
from jobs import GEOMETRY, held, prefill_job, step
from owning import admitted, adopted, announced, generated, prefilled

from kv.operations import Queued, Record
from kvstore.store import MAX_DEATHS, Store
from protocol.messages import DecodeJob


@pytest.fixture
def store() -> Iterator[Store]:
    """A pool of ten blocks of four tokens; its invariants hold after each test."""
    store = Store(GEOMETRY, num_blocks=10, max_waiting=3)
    yield store
    store.check()


def hung(store: Store, num_outputs: int = 1) -> Record:
    """A sequence of ten prompt tokens, whose owner "a" hangs."""
    record = generated(store, prefill_job("r1", 10, max_tokens=20), num_outputs)
    store.expire("a")
    return record


def test_full_blocks_stay_and_the_tail_is_copied(store: Store) -> None:
    """
    The next owner has all that was computed, and writes where the hung one cannot.
    """
    lost = hung(store)

    (heir,) = adopted(store, "b")

    assert heir.block_table[:2] == lost.block_table[:2]
    assert heir.copies == ((lost.block_table[2], heir.block_table[2]),)
    assert heir.block_table[2] not in lost.block_table
    assert (heir.num_computed_tokens, heir.token_ids[-1]) == (10, 50)


def test_a_sequence_of_full_blocks_needs_no_copy(store: Store) -> None:
    """
    The block for the next token was given already: it is lost, and another one is given.
    """
    hung(store, num_outputs=3)

    (heir,) = adopted(store, "b")

    assert (heir.num_computed_tokens, heir.copies) == (12, ())
    assert len(heir.block_table) == 4
    assert store.blocks.num_quarantined == 1


def test_what_it_may_write_to_is_nobody_s_until_it_is_gone(store: Store) -> None:
    """
    Lost blocks are not given to others, however long these wait.
    """
    lost = hung(store)
    (heir,) = adopted(store, "b")
    store.advance([step(heir, 11, 51)], "b")
    store.release([held(heir)], "b")

    waiting = store.admit(prefill_job("r2", 40, max_tokens=1), "b")
    meanwhile = (store.blocks.num_available, announced(store))
    store.detach("a")

    assert isinstance(waiting, Queued)
    assert meanwhile == (9, [])
    (after,) = adopted(store, "b")
    assert lost.block_table[2] in after.block_table


def test_the_source_of_the_copy_outlives_the_hung_worker(store: Store) -> None:
    """
    Even when nobody writes to it any more, it is kept for who has not copied it yet.
    """
    lost = hung(store)
    (heir,) = adopted(store, "b")
    store.detach("a")
    before = store.blocks.num_referenced

    store.advance([step(heir, 11, 51)], "b")

    assert heir.copies[0][0] == lost.block_table[2]
    assert before == 4
    assert (store.blocks.num_referenced, store.blocks.num_quarantined) == (3, 0)


def test_the_steps_of_the_hung_worker_are_worth_nothing(store: Store) -> None:
    """
    When it wakes, its step changes nothing, and it is told that all is gone.
    """
    lost = hung(store)
    (heir,) = adopted(store, "b")

    advanced = store.advance([step(lost, 11, 99)], "a")
    store.park([held(lost)], "a")
    store.release([held(lost)], "a")

    assert advanced.gone == (lost.request_id,)
    assert advanced.growth == ()
    assert store.advance([step(heir, 11, 51)], "b").gone == ()


def test_it_is_announced_as_what_it_is(store: Store) -> None:
    """
    A sequence that decodes goes on decoding.
    """
    lost = hung(store)

    (record,) = announced(store)

    job = record.next_job()
    assert isinstance(job, DecodeJob)
    assert job.generation == lost.generation


def test_an_adopter_that_hangs_before_it_copied(store: Store) -> None:
    """
    The copy is made from where the content is, not from where it should have gone.
    """
    lost = hung(store)
    (second,) = adopted(store, "b")

    store.expire("b")

    (third,) = adopted(store, "c")
    assert third.copies == ((lost.block_table[2], third.block_table[2]),)
    assert len({r.block_table[2] for r in (lost, second, third)}) == 3
    assert store.blocks.num_quarantined == 2


def test_an_adopter_that_hangs_after_it_copied(store: Store) -> None:
    """
    Its own block is the source then, and the first one is of no use any more.
    """
    hung(store)
    (second,) = adopted(store, "b")
    store.advance([step(second, 11, 51)], "b")

    store.expire("b")
    store.detach("a")

    (third,) = adopted(store, "c")
    assert third.copies == ((second.block_table[2], third.block_table[2]),)
    assert (third.num_computed_tokens, store.blocks.num_quarantined) == (11, 1)


def test_a_prompt_that_was_not_begun_needs_no_copy(store: Store) -> None:
    """
    Where nothing is computed all blocks are new.
    """
    lost = admitted(store, prefill_job("r1", 10))

    store.expire("a")

    (heir,) = adopted(store, "b")
    assert heir.copies == ()
    assert not set(heir.block_table) & set(lost.block_table)
    assert store.blocks.num_quarantined == 3


def test_without_room_for_the_copy_it_starts_again(store: Store) -> None:
    """
    It waits in line like one that was preempted, and keeps what is in the cache.
    """
    hung_record = prefilled(store, prefill_job("r1", 10))
    other = admitted(store, prefill_job("r2", 28), "b")

    store.expire("a")

    assert (store.counts.preemptions, announced(store)) == (1, [])
    store.release([held(other)], "b")
    (heir,) = adopted(store, "b")
    assert heir.block_table[:2] == hung_record.block_table[:2]
    assert (heir.num_computed_tokens, heir.copies) == (8, ())


def test_what_was_cancelled_ends_even_without_room(store: Store) -> None:
    """
    A cancelled sequence of a hung worker does not come back, room or not.
    """
    record = prefilled(store, prefill_job("r1", 10))
    other = admitted(store, prefill_job("r2", 28), "b")
    store.cancel(record.request_id)

    store.expire("a")
    store.release([held(other)], "b")

    assert announced(store) == []
    assert store.num_waiting == 0


def test_a_request_that_hangs_its_workers_frees_nothing_they_write_to(
    store: Store,
) -> None:
    """
    It is given up after too many, and what they may still write to is quarantined.
    """
    admitted(store, prefill_job("r1", 6))
    for number in range(MAX_DEATHS - 1):
        store.expire("a" if number == 0 else f"w{number}")
        adopted(store, f"w{number + 1}")

    store.expire(f"w{MAX_DEATHS - 1}")

    assert [failure.request.request_id for failure in store.failures] == ["r1"]
    assert store.blocks.num_quarantined == 2 * MAX_DEATHS
    assert store.blocks.num_referenced == 0


def test_followers_of_a_hung_leader_wait_for_its_heir(store: Store) -> None:
    """
    They share what the heir computes, and nothing of what the hung one may write to.
    """
    leader = admitted(store, prefill_job("r1", 10))
    store.admit(prefill_job("r2", 10, like="r1"), "b")
    store.advance([step(leader, 5)], "a")
    store.expire("a")
    (heir,) = adopted(store, "b")

    store.advance([step(heir, 10, 50)], "b")

    (follower,) = adopted(store, "b")
    assert follower.num_computed_tokens == 9
    assert not set(follower.block_table) & set(leader.block_table[1:])


def test_a_fork_may_still_copy_from_what_a_hung_leader_lost(store: Store) -> None:
    """
    A leader writes behind its prompt only, so the begin of that block is good.
    """
    leader = admitted(store, prefill_job("r1", 6))
    store.admit(prefill_job("r2", 6, like="r1"), "b")
    store.advance([step(leader, 6, 50)], "a")
    (follower,) = adopted(store, "b")

    store.expire("a")
    store.detach("a")
    (heir,) = adopted(store, "c")

    assert follower.copies[0][0] == heir.copies[0][0] == leader.block_table[1]
    store.advance([step(follower, 6, 60)], "b")
    store.advance([step(heir, 7, 51)], "c")
    assert store.blocks.num_referenced == 3
