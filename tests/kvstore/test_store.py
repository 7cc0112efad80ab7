"""The store's records: who may compute what, and what becomes of it."""

from collections.abc import Iterator

import pytest
from jobs import GEOMETRY, held, prefill_job, step
from owning import admitted, adopted, announced, prefilled

from kv.operations import Gone, Part, Record
from kvstore.store import MAX_DEATHS, Store
from protocol.messages import DecodeJob, PrefillJob, RequestId


@pytest.fixture
def store() -> Iterator[Store]:
    """A pool of ten blocks of four tokens; its invariants hold after each test."""
    store = Store(GEOMETRY, num_blocks=10, max_waiting=3)
    yield store
    store.check()


def test_admission_gives_blocks_for_the_prompt(store: Store) -> None:
    """
    An admitted request owns blocks for its prompt; those for its output come later.
    """
    record = admitted(store, prefill_job(num_tokens=6, max_tokens=7))

    assert len(record.block_table) == 2
    assert record.generation == 1
    assert record.num_computed_tokens == 0
    assert store.blocks.num_referenced == 2


@pytest.mark.parametrize(
    ("num_blocks", "expected"), [(30, 1), (102, 2), (202, 3), (302, 4), (10_000, 4)]
)
def test_who_grows_gets_more_where_there_is_plenty(
    num_blocks: int, expected: int
) -> None:
    """
    Up to three blocks beyond the one it needs, and a hundredth of what is left: its worker
    need not ask again so soon, and nobody else will miss them.
    """
    store = Store(GEOMETRY, num_blocks, max_waiting=3)
    record = admitted(store, prefill_job(num_tokens=4, max_tokens=100))

    advanced = store.advance([step(record, 4, 50)], "a")

    assert [len(growth.block_ids) for growth in advanced.growth] == [expected]
    store.check()


def test_nobody_grows_beyond_its_end() -> None:
    """
    Of what a request may need at its longest no block is too much, and all come back.
    """
    store = Store(GEOMETRY, num_blocks=10_000, max_waiting=3)
    record = admitted(store, prefill_job(num_tokens=4, max_tokens=6))

    advanced = store.advance([step(record, 4, 50)], "a")

    assert [len(growth.block_ids) for growth in advanced.growth] == [2]
    store.release([held(record)], "a")
    assert store.blocks.num_referenced == 0


def test_growth_comes_with_the_answer_to_a_step(store: Store) -> None:
    """
    The block that the next token needs arrives before that token is computed.
    """
    record = admitted(store, prefill_job(num_tokens=4, max_tokens=6))

    first = store.advance([step(record, 4, 50)], "a")
    second = store.advance([step(record, 5, 51)], "a")

    assert [len(growth.block_ids) for growth in first.growth] == [1]
    assert second.growth == ()


def test_the_last_token_takes_no_block(store: Store) -> None:
    """
    The last token is never computed, so it needs no slot.
    """
    record = admitted(store, prefill_job(num_tokens=4, max_tokens=1))

    advanced = store.advance([step(record, 4, 50)], "a")

    assert advanced.growth == ()


def test_park_announces_a_decode_job(store: Store) -> None:
    """
    A prefilled sequence that its owner parks is announced for decoding.
    """
    record = prefilled(store, prefill_job())

    store.park([held(record)], "a")

    (parked,) = announced(store)
    job = parked.next_job()
    assert isinstance(job, DecodeJob)
    assert job.generation == record.generation


def test_adoption_continues_where_the_owner_stopped(store: Store) -> None:
    """
    The adopter gets tokens, computed count and blocks as they were, one generation on.
    """
    record = prefilled(store, prefill_job(num_tokens=6))
    store.park([held(record)], "a")

    adopted = store.adopt(record.request_id, record.generation, "b")

    assert isinstance(adopted, Record)
    assert adopted.token_ids == (1, 2, 3, 4, 5, 6, 50)
    assert adopted.num_computed_tokens == 6
    assert adopted.block_table == record.block_table
    assert adopted.generation == record.generation + 1


def test_an_old_announcement_is_worth_nothing(store: Store) -> None:
    """
    Of two workers that read the same announcement, only the first gets the sequence.
    """
    record = prefilled(store, prefill_job())
    store.park([held(record)], "a")
    store.adopt(record.request_id, record.generation, "b")

    late = store.adopt(record.request_id, record.generation, "c")

    assert isinstance(late, Gone)


def test_who_lost_a_sequence_cannot_change_it(store: Store) -> None:
    """
    The steps, parks and releases of a former owner are refused by its generation.
    """
    record = prefilled(store, prefill_job())
    store.park([held(record)], "a")
    now = store.adopt(record.request_id, record.generation, "b")

    advanced = store.advance([step(record, 7, 99)], "a")
    store.release([held(record)], "a")

    assert advanced.gone == (record.request_id,)
    assert isinstance(now, Record)
    again = store.advance([step(now, 7, 51)], "b")
    assert again.gone == ()


def test_the_dead_worker_s_sequences_are_announced(store: Store) -> None:
    """
    When its owner dies a sequence is parked at its last recorded token, at once.
    """
    prompt_only = admitted(store, prefill_job("r1"))
    decoding = prefilled(store, prefill_job("r2"))

    store.detach("a")

    jobs = {record.request_id: record.next_job() for record in announced(store)}
    assert isinstance(jobs[prompt_only.request_id], PrefillJob)
    assert isinstance(jobs[decoding.request_id], DecodeJob)


def test_prefill_goes_on_in_the_middle_of_a_prompt(store: Store) -> None:
    """
    A prompt whose owner died after its first chunk is not computed from the start.
    """
    record = admitted(store, prefill_job(num_tokens=8))
    store.advance([step(record, 5)], "a")
    store.detach("a")
    job = announced(store)[0].next_job()
    assert isinstance(job, PrefillJob)

    adopted = store.admit(job, "b")

    assert isinstance(adopted, Record)
    assert adopted.num_computed_tokens == 5


def test_a_request_that_kills_its_workers_is_given_up(store: Store) -> None:
    """
    After three owners in a row that died without a step, the request has failed.
    """
    record = admitted(store, prefill_job())
    for number in range(MAX_DEATHS - 1):
        store.detach("a" if number == 0 else f"w{number}")
        job = announced(store)[0].next_job()
        assert isinstance(job, PrefillJob)
        store.admit(job, f"w{number + 1}")

    store.detach(f"w{MAX_DEATHS - 1}")

    assert [failure.request.request_id for failure in store.failures] == [
        record.request_id
    ]
    assert store.blocks.num_free == 10


def test_a_step_forgives_the_deaths_before_it(store: Store) -> None:
    """
    Deaths count only while nothing is computed: a long answer may outlive many workers.
    """
    record = prefilled(store, prefill_job(max_tokens=20))
    for number in range(2 * MAX_DEATHS):
        store.detach("a")
        job = announced(store)[0].next_job()
        adopted = store.adopt(job.request_id, job.generation, "a")
        assert isinstance(adopted, Record)
        store.advance([step(adopted, 7 + number, 60 + number)], "a")

    assert not store.failures
    assert record.request_id == adopted.request_id


def test_cancel_frees_a_parked_sequence_at_once(store: Store) -> None:
    """
    Nobody writes to a parked sequence, so its blocks are nobody's with the cancel.
    """
    record = prefilled(store, prefill_job())
    store.park([held(record)], "a")

    store.cancel(record.request_id)

    assert store.blocks.num_available == 10
    assert announced(store) == []


def test_cancel_waits_for_the_owner_s_step(store: Store) -> None:
    """
    An owned sequence keeps its blocks until its owner is between two steps.
    """
    record = prefilled(store, prefill_job())
    other = admitted(store, prefill_job("r2"))

    store.cancel(record.request_id)
    held_meanwhile = store.blocks.num_referenced
    advanced = store.advance([step(other, 6, 70)], "a")

    assert held_meanwhile == 4
    assert advanced.gone == (record.request_id,)
    assert store.blocks.num_referenced == 2


def test_a_cancelled_sequence_dies_with_its_owner(store: Store) -> None:
    """
    What was cancelled is not announced when its owner dies, but freed.
    """
    record = prefilled(store, prefill_job())
    store.cancel(record.request_id)

    store.detach("a")

    assert announced(store) == []
    assert store.blocks.num_available == 10


def test_cancel_overtakes_the_job(store: Store) -> None:
    """
    A request that was cancelled while its job lay in the stream is never admitted.
    """
    store.cancel(RequestId("r1"))

    answer = store.admit(prefill_job("r1"), "a")

    assert isinstance(answer, Gone)


def test_a_job_delivered_again_after_the_end_starts_nothing(store: Store) -> None:
    """
    A redelivered job of a finished request does not compute it a second time.
    """
    record = admitted(store, prefill_job())
    store.release([held(record)], "a")

    answer = store.admit(prefill_job(), "b")

    assert isinstance(answer, Gone)
    assert store.blocks.num_free == 10


def test_a_recalled_sequence_has_room_for_its_next_token(store: Store) -> None:
    """
    A request that comes again from a new address leaves its owner between two steps,
    and takes along the block that this owner would have been given.
    """
    job = prefill_job(num_tokens=4, max_tokens=6)
    record = admitted(store, job)
    store.admit(job.changed(reply_to="g2", attempt=1), "b")

    advanced = store.advance([step(record, 4, 50)], "a")

    (heir,) = adopted(store, "b")
    assert advanced.gone == (record.request_id,)
    assert (heir.reply_to, len(heir.block_table)) == ("g2", 2)


def test_an_earlier_attempt_that_comes_late_changes_no_address(store: Store) -> None:
    """
    Streams may bring a request's first job after its second: the newer address stays.
    """
    job = prefill_job()
    record = admitted(store, job)
    store.admit(job.changed(reply_to="g2", attempt=1), "b")
    store.advance([step(record, 6, 50)], "a")

    store.admit(job, "b")

    (heir,) = adopted(store, "b")
    assert heir.reply_to == "g2"


def test_what_happened_is_counted(store: Store) -> None:
    """
    Handed off and adopted, lost and recovered, and what the prefix cache gave.
    """
    first = prefilled(store, prefill_job("r1", num_tokens=9))
    store.park([held(first)], "a")
    adopted(store, "b")
    store.detach("b")
    admitted(store, prefill_job("r2", num_tokens=9, like="r1"))

    counts = store.counts.message()

    assert (counts.parks, counts.adoptions, counts.recoveries) == (2, 1, 1)
    assert (counts.queried_tokens, counts.cached_tokens) == (18, 8)
    assert counts.preemptions == 0


def test_workers_hear_of_those_who_compute_beside_them(store: Store) -> None:
    """
    Who holds something shares the machine with the others who do; who holds nothing, or
    is gone, does not count.
    """
    for worker in ("a", "b"):
        store.division.join(worker, ("decode",))
    alone = admitted(store, prefill_job("r1", num_tokens=4), "a")
    together = admitted(store, prefill_job("r2", num_tokens=4), "b")
    both = store.advance([step(alone, 4, 50)], "a").part

    store.release([held(together)], "b")
    after = store.advance([step(alone, 5, 51)], "a").part

    assert (alone.part, together.part) == (Part(100, 1), Part(100, 2))
    assert (both, after) == (Part(100, 2), Part(100, 1))


def test_prompts_that_pile_up_get_the_whole_machine_until_they_are_done() -> None:
    """
    Where nobody set shares both phases hear of halves, of everything while a prefill
    worker has many prompts, and of halves again with the last of them.
    """
    store = Store(GEOMETRY, num_blocks=2000, max_waiting=3)
    store.division.join("p", ("prefill",))
    store.division.join("d", ("decode",))
    store.park([held(prefilled(store, prefill_job("r1"), "p"))], "p")
    (decoding,) = adopted(store, "d")

    jobs = [prefill_job(f"r{n}", 1280, max_tokens=8) for n in (2, 3, 4)]
    prompts = [admitted(store, job, "p") for job in jobs]
    of_decode = [store.advance([step(decoding, 7, 50)], "d").part.percent]
    of_prefill = [record.part.percent for record in prompts]
    for record in prompts:
        of_prefill.append(store.advance([step(record, 1280, 9)], "p").part.percent)
    of_decode.append(store.advance([step(decoding, 8, 51)], "d").part.percent)

    assert of_prefill == [50, 50, 100, 100, 100, 50]
    assert of_decode == [100, 50]
    store.check()
