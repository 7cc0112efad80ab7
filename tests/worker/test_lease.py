"""The lease on what a worker holds: renewed beside its steps, and its end."""

from threading import Event

import pytest
from direct_store import DirectStore
from jobs import loaded_pool, prefill_job
from waiting import wait_until

from kv.errors import StoreLost
from kv.operations import Answer, Operation
from kvstore.pool import Pool
from worker import lease

LEASE_SECONDS = 0.2
LOST_SECONDS = 10.0


class Store(DirectStore):
    """A connection that counts its calls, and can fall silent."""

    num_calls = 0
    is_silent = False

    def _exchange(self, operation: Operation) -> Answer:
        self.num_calls += 1
        if self.is_silent:
            raise StoreLost("silent")
        return super()._exchange(operation)


@pytest.fixture
def pool() -> Pool:
    return loaded_pool(10)


@pytest.fixture
def store(pool: Pool) -> Store:
    """The connection of a worker that holds one sequence."""
    store = Store(pool, "a")
    store.admit(prefill_job())
    return store


async def test_a_held_lease_does_not_run_out(pool: Pool, store: Store) -> None:
    """
    For longer than a lease nothing but renewals is heard, and nobody is taken for hung.
    """
    with lease.held(store, LEASE_SECONDS):
        await wait_until(lambda: store.num_calls > 2 * lease.RENEWALS_PER_LEASE)

        silent = pool.expire(LEASE_SECONDS)

    assert silent == []


def test_who_lost_the_lease_hears_of_it(pool: Pool, store: Store) -> None:
    """
    When the store gave up on the worker, the next renewal says so.
    """
    lost = Event()
    with lease.held(store, LEASE_SECONDS, on_lost=lost.set):
        silent = pool.expire(lease_seconds=0.0)

        assert lost.wait(LOST_SECONDS)

    assert silent == ["a"]


async def test_a_lost_store_is_no_lost_lease(store: Store) -> None:
    """
    Without a store there is nothing to renew: the engine's thread will find out.
    """
    lost = Event()
    store.is_silent = True

    with lease.held(store, LEASE_SECONDS, on_lost=lost.set):
        await wait_until(lambda: store.num_calls > 1)

    assert not lost.is_set()
