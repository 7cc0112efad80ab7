"""The prefix cache: what was computed once is shared, and what is being computed too."""

from collections.abc import Iterator

import pytest
from jobs import GEOMETRY, held, prefill_job, step
from owning import admitted, adopted, generated, prefilled

from kv.operations import Queued, Record
from kvstore.store import Store
from protocol.messages import PrefillJob


@pytest.fixture
def store() -> Iterator[Store]:
    """A pool of ten blocks of four tokens; its invariants hold after each test."""
    store = Store(GEOMETRY, num_blocks=10, max_waiting=3)
    yield store
    store.check()


def ended(store: Store, job: PrefillJob) -> Record:
    """Prefilled and released."""
    record = prefilled(store, job)
    store.release([held(record)], "a")
    return record


def diverging(job: PrefillJob, place: int) -> PrefillJob:
    """The same up to the token at `place`."""
    tokens = list(job.token_ids)
    tokens[place] = 99
    return job.changed(token_ids=tuple(tokens))


def test_a_prompt_that_begins_like_one_before_shares_its_blocks(store: Store) -> None:
    """
    Full blocks outlive their request: the next one computes only what is behind them.
    """
    first = ended(store, prefill_job("r1", 11))

    second = admitted(store, prefill_job("r2", 15, like="r1"))

    assert second.block_table[:2] == first.block_table[:2]
    assert second.num_computed_tokens == 8
    assert second.num_cached_tokens == 8


def test_blocks_are_shared_with_who_runs(store: Store) -> None:
    """
    A full block never changes, so its owner need not be done with it.
    """
    first = prefilled(store, prefill_job("r1", 11))

    second = admitted(store, prefill_job("r2", 15, like="r1"), "b")

    assert second.block_table[:2] == first.block_table[:2]
    assert store.blocks.num_referenced == 5


def test_the_next_turn_of_a_chat_finds_the_last_answer(store: Store) -> None:
    """
    Blocks that decode filled are shared like those of a prompt.
    """
    first = generated(store, prefill_job("r1", 6, max_tokens=9), 7)
    store.release([held(first)], "a")
    answer = tuple(range(50, 57))
    job = prefill_job("r2", 20)

    second = admitted(
        store, job.changed(token_ids=(*range(1, 7), *answer, *range(60, 67)))
    )

    assert second.num_cached_tokens == 12


def test_a_different_token_ends_the_shared_prefix(store: Store) -> None:
    """
    Behind the first difference nothing is equal, even if the tokens are.
    """
    job = prefill_job("r1", 15)
    ended(store, job)

    second = admitted(store, diverging(prefill_job("r2", 15, like="r1"), place=5))

    assert second.num_cached_tokens == 4


def test_the_last_token_of_a_prompt_is_always_computed(store: Store) -> None:
    """
    The first output comes from the last prompt token, so not all of a prompt is shared.
    """
    ended(store, prefill_job("r1", 8))

    second = admitted(store, prefill_job("r2", 8, like="r1"))

    assert second.num_cached_tokens == 4


def test_another_salt_shares_nothing(store: Store) -> None:
    """
    Who has another salt cannot learn from a fast answer what others asked.
    """
    ended(store, prefill_job("r1", 12, cache_salt="mine"))
    running = admitted(store, prefill_job("r2", 12, like="r1", cache_salt="yours"))

    same = admitted(store, prefill_job("r3", 12, like="r1", cache_salt="mine"))

    assert running.num_cached_tokens == 0
    assert same.num_cached_tokens == 8


def test_what_was_not_used_for_longest_is_evicted_first(store: Store) -> None:
    """
    A hit renews a prefix: the other one, younger but unused, gives way.
    """
    ended(store, prefill_job("r1", 13))
    ended(store, prefill_job("r2", 13))
    ended(store, prefill_job("r3", 13, like="r1"))

    store.release([held(admitted(store, prefill_job("r4", 25)))], "a")

    used = admitted(store, prefill_job("r5", 13, like="r1"))
    unused = admitted(store, prefill_job("r6", 13, like="r2"))
    assert (used.num_cached_tokens, unused.num_cached_tokens) == (12, 0)


def test_the_tail_of_a_prefix_is_evicted_first(store: Store) -> None:
    """
    Of a prefix that has to give way in part, the begin stays of use.
    """
    ended(store, prefill_job("r1", 13))

    store.release([held(admitted(store, prefill_job("r2", 33)))], "a")

    again = admitted(store, prefill_job("r3", 13, like="r1"))
    assert again.num_cached_tokens == 4


def test_a_shared_block_is_not_evicted(store: Store) -> None:
    """
    Whatever others need, a block that somebody reads stays.
    """
    first = ended(store, prefill_job("r1", 9))
    second = admitted(store, prefill_job("r2", 9, like="r1"))

    third = admitted(store, prefill_job("r3", 28))
    waiting = store.admit(prefill_job("r4", 4), "a")

    assert second.block_table[:2] == first.block_table[:2]
    assert not set(third.block_table) & set(second.block_table)
    assert isinstance(waiting, Queued)


def test_num_cached_tokens_is_told_to_every_owner(store: Store) -> None:
    """
    What a request found at its start is what its client is told at its end.
    """
    ended(store, prefill_job("r1", 9))
    second = prefilled(store, prefill_job("r2", 15, like="r1"))

    store.park([held(second)], "a")

    (heir,) = adopted(store, "b")
    assert heir.num_computed_tokens == 15
    assert heir.num_cached_tokens == 8


def test_what_a_request_computed_itself_does_not_count_as_cached(store: Store) -> None:
    """
    A preempted sequence finds blocks of its own again: nothing was saved by that.
    """
    older = generated(store, prefill_job("r1", 20, max_tokens=9), 4)
    prefilled(store, prefill_job("r2", 13))
    store.advance([step(older, 24, 54)], "a")
    assert store.counts.preemptions == 1

    store.release([held(older)], "a")

    (again,) = adopted(store, "b")
    assert (again.num_computed_tokens, again.num_cached_tokens) == (12, 0)


def test_output_that_a_client_has_is_not_counted_as_cached_prompt(store: Store) -> None:
    """
    A request that comes again with its output may find more than its prompt was long.
    """
    first = generated(store, prefill_job("r1", 6, max_tokens=12), 11)
    store.release([held(first)], "a")
    again = prefill_job("r2", 6, max_tokens=12)
    tokens = (*range(1, 7), *range(50, 60))

    second = admitted(store, again.changed(token_ids=tokens))

    assert second.num_computed_tokens == 12
    assert second.num_cached_tokens == 6
