"""Admission: who finds no room waits in line, if there is any sense in it."""

from collections.abc import Iterator

import pytest
from jobs import GEOMETRY, held, prefill_job
from owning import admitted, announced

from kv.operations import Gone, Queued
from kvstore.store import Store
from protocol.messages import RequestId


@pytest.fixture
def store() -> Iterator[Store]:
    """A pool of ten blocks of four tokens; its invariants hold after each test."""
    store = Store(GEOMETRY, num_blocks=10, max_waiting=3)
    yield store
    store.check()


def test_who_finds_no_room_waits_in_order(store: Store) -> None:
    """
    Waiting requests get blocks first come first served; a short one does not overtake.
    """
    running = admitted(store, prefill_job("r1", 24, max_tokens=5))
    long = store.admit(prefill_job("r2", 24, max_tokens=5), "a")
    short = store.admit(prefill_job("r3", 4, max_tokens=1), "a")

    store.release([held(running)], "a")

    assert isinstance(long, Queued)
    assert isinstance(short, Queued)
    assert [record.request_id for record in announced(store)] == ["r2", "r3"]


def test_a_full_queue_refuses(store: Store) -> None:
    """
    The queue for blocks is bounded, and who does not get in is told.
    """
    admitted(store, prefill_job("r0", 36, max_tokens=5))
    for number in range(3):
        store.admit(prefill_job(f"w{number}", 36, max_tokens=5), "a")

    answer = store.admit(prefill_job("late", 36, max_tokens=5), "a")

    assert isinstance(answer, Gone)
    assert [f.request.request_id for f in store.failures] == ["late"]


@pytest.mark.parametrize(("num_tokens", "max_tokens"), [(41, 1), (20, 22)])
def test_what_can_never_fit_does_not_wait(
    store: Store, num_tokens: int, max_tokens: int
) -> None:
    """
    A request larger than the whole pool, at its start or its end, fails at once.
    """
    answer = store.admit(prefill_job("huge", num_tokens, max_tokens=max_tokens), "a")

    assert isinstance(answer, Gone)
    assert store.num_waiting == 0
    assert [f.request.request_id for f in store.failures] == ["huge"]


def test_what_just_fits_fits(store: Store) -> None:
    """
    Alone, a request may have every block, also those that are kept for growth.
    """
    record = admitted(store, prefill_job("r1", 40, max_tokens=1))

    assert len(record.block_table) == 10


def test_cancel_takes_a_waiting_request_out_of_the_queue(store: Store) -> None:
    """
    A waiting request that is cancelled does not hold up those behind it.
    """
    admitted(store, prefill_job("r1", 20, max_tokens=5))
    store.admit(prefill_job("r2", 36, max_tokens=5), "a")
    store.admit(prefill_job("r3", 4, max_tokens=1), "a")

    store.cancel(RequestId("r2"))

    assert [record.request_id for record in announced(store)] == ["r3"]
    assert store.num_waiting == 0
