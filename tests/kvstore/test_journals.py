"""What a worker noted counts as soon as somebody has to know, and not a moment later."""

import os
from collections.abc import Iterator
from contextlib import closing

import pytest
from jobs import held, loaded_pool, prefill_job, step

from kv.journal import Journal
from kv.operations import Admit, Advance, Advanced, Expired, Held, Park, Record
from kvstore.pool import Pool
from kvstore.store import Store
from protocol.messages import Cancel, Shares

ME = "a"


@pytest.fixture
def pool() -> Iterator[Pool]:
    """Blocks of four tokens; its invariants hold after each test."""
    pool = loaded_pool(10)
    yield pool
    pool.detach(ME)
    assert pool.store
    pool.store.check()


@pytest.fixture
def store(pool: Pool) -> Store:
    assert pool.store
    return pool.store


@pytest.fixture
def journal(pool: Pool) -> Iterator[Journal]:
    with closing(Journal(os.dup(pool.journals.open(ME)))) as journal:
        yield journal


@pytest.fixture
def record(pool: Pool, journal: Journal) -> Record:
    """Worker "a" has computed its five tokens, and its block has room for three more."""
    pool.division.join(ME, ("decode",))
    record = pool.answer(ME, Admit(job=prefill_job("r1", 5, max_tokens=9)))
    assert isinstance(record, Record)
    pool.answer(ME, Advance(progress=(step(record, 5, 50),)))
    assert journal.is_called()  # its own beginning
    return record


def asked(pool: Pool) -> Advanced:
    answer = pool.answer(ME, Advance(progress=()))
    assert isinstance(answer, Advanced)
    return answer


def outputs(store: Store, record: Record) -> list[int]:
    (known,) = (r for r in [store.parked(record.request_id)] if r)
    return known.token_ids[record.num_prompt_tokens :]


def test_it_counts_before_what_is_asked_next(
    pool: Pool, store: Store, journal: Journal, record: Record
) -> None:
    """
    A sequence is parked with all the steps that its owner noted before.
    """
    journal.write((step(record, 6, 51),))
    journal.write((step(record, 7, 52),))

    pool.answer(ME, Park(sequences=(held(record),)))

    assert outputs(store, record) == [50, 51, 52]
    assert not journal.is_called()


def test_it_outlives_its_writer(
    pool: Pool, store: Store, journal: Journal, record: Record
) -> None:
    """
    The next owner of a dead worker's sequence computes nothing again.
    """
    journal.write((step(record, 6, 51),))
    journal.close()

    pool.detach(ME)

    heir = store.adopt(record.request_id, record.generation, "b")
    assert isinstance(heir, Record)
    assert (heir.num_computed_tokens, heir.token_ids[-2:]) == (6, (50, 51))


def test_who_holds_what_is_cancelled_is_called(
    pool: Pool, journal: Journal, record: Record
) -> None:
    """
    Its blocks are free as soon as it has asked, one step later.
    """
    pool.answer("b", Cancel(request_id=record.request_id))
    journal.write((step(record, 6, 51),))

    is_called = journal.is_called()
    answer = asked(pool)

    assert is_called
    assert answer.gone == (record.request_id,)


def test_who_computes_is_called_when_its_part_changes(
    pool: Pool, journal: Journal, record: Record
) -> None:
    """
    Be it that the shares change or that somebody begins to compute beside it.
    """
    pool.division.join("b", ("prefill",))

    pool.answer("b", Admit(job=prefill_job("r2")))
    beside = journal.is_called(), asked(pool).part.percent
    pool.division.change(Shares(prefill=30, decode=70))
    changed = journal.is_called(), asked(pool).part.percent

    assert (beside, changed) == ((True, 50), (True, 70))


def test_who_is_expired_is_called_first(
    pool: Pool, store: Store, journal: Journal, record: Record
) -> None:
    """
    What it noted before counts. What it notes later does not, and it is told so when it
    asks, which is before anybody hears of that step.
    """
    journal.write((step(record, 6, 51),))
    pool.expire(lease_seconds=0.0)
    journal.write((step(record, 7, 52),))

    is_called = journal.is_called()
    answer = pool.answer(ME, Advance(progress=()))
    pool.detach(ME)

    assert is_called
    assert isinstance(answer, Expired)
    assert outputs(store, record) == [50, 51]


def test_nobody_notes_of_what_is_no_longer_its_own(
    pool: Pool, store: Store, journal: Journal, record: Record
) -> None:
    """
    A step of an older generation is passed over, as it is in a question.
    """
    older = Held(record.request_id, record.generation - 1)
    journal.write((step(record, 6, 51)._replace(generation=older.generation),))

    pool.answer(ME, Park(sequences=(held(record),)))

    assert outputs(store, record) == [50]


def test_a_journal_of_nonsense_is_closed(
    pool: Pool, journal: Journal, record: Record
) -> None:
    """
    The store goes on, and the worker finds nobody there to write to.
    """
    journal.write((step(record, 6)._replace(token_ids="no tokens"),))  # type: ignore[arg-type]

    answer = asked(pool)

    assert answer.gone == ()
    with pytest.raises(OSError, match="Broken pipe"):
        journal.write((step(record, 6, 51),))
