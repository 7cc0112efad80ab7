"""A pool takes from workers that it does not hear what they hold, and tells them."""

import pytest
from jobs import loaded_pool, prefill_job
from prometheus_client import REGISTRY

from kv.operations import Admit, Done, Expired, Record, Renew, Stats
from kvstore.app import facts, snapshot
from kvstore.pool import Pool
from protocol import keys
from protocol.messages import PoolStatus, decode_status

LONG_SECONDS = 60.0


@pytest.fixture
def pool() -> Pool:
    """Worker "a" holds a sequence, "b" was heard but holds nothing."""
    pool = loaded_pool(10)
    assert isinstance(pool.answer("a", Admit(job=prefill_job())), Record)
    assert isinstance(pool.answer("b", Stats()), PoolStatus)
    return pool


def test_who_was_heard_keeps_what_it_holds(pool: Pool) -> None:
    """
    Within its lease a worker may say nothing else than that it lives.
    """
    renewed = pool.answer("a", Renew())

    assert isinstance(renewed, Done)
    assert pool.expire(LONG_SECONDS) == []
    assert not pool.has_announcements


def test_it_says_how_its_memory_is_shared(pool: Pool) -> None:
    """
    Its status, its health and its metrics have the same word for it.
    """
    values = snapshot(pool, "store-1")

    status = decode_status(values[keys.pool("p")])
    way = REGISTRY.get_sample_value("tandem_memory_sharing_info", {"way": "memfd"})
    assert isinstance(status, PoolStatus)
    assert (status.sharing, facts(pool)["sharing"], way) == ("memfd", "memfd", 1)


def test_it_says_its_shares_and_whom_they_are_by(pool: Pool) -> None:
    """
    Its status and its health have the same words for it.
    """
    status = pool.status()

    assert status
    assert (str(status.shares), status.shares_by) == ("50/50", "queue")
    assert facts(pool).items() >= {"shares": "50/50", "shares_by": "queue"}.items()


def test_only_who_holds_something_can_lose_it(pool: Pool) -> None:
    """
    The silent owner's sequence is announced to others; an idle worker may be silent.
    """
    silent = pool.expire(lease_seconds=0.0)

    assert silent == ["a"]
    assert pool.has_announcements
    assert pool.expire(lease_seconds=0.0) == []


def test_an_expired_worker_is_told_whatever_it_asks(pool: Pool) -> None:
    """
    It gets nothing any more, until it has ended and comes with a new connection.
    """
    pool.expire(lease_seconds=0.0)

    told = [pool.answer("a", each) for each in (Renew(), Admit(job=prefill_job("r2")))]
    pool.detach("a")

    assert told == [Expired(), Expired()]
    assert isinstance(pool.answer("a", Renew()), Done)


def test_a_store_that_slept_blames_nobody(pool: Pool) -> None:
    """
    What it could not hear while it was not running itself is forgiven.
    """
    pool.forgive(LONG_SECONDS)

    assert pool.expire(lease_seconds=0.0) == []
