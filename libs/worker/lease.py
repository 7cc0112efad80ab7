"""A worker's lease on all that it holds: renewed from a thread of its own, and the end of
the process when it was lost.

A step may take long, and then only this thread tells the store that the worker lives. A
process that was stopped loses its lease without knowing: others compute its sequences by
now, and all that it may still write to is quarantined at the store until it has ended.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog

from kv.client import StoreClient
from kv.errors import LeaseLost, StoreLost
from mesh.runtime import EXIT_UNREACHABLE

RENEWALS_PER_LEASE = 4

logger = structlog.get_logger()


def end_process() -> None:
    """At once: nothing here is anybody's any more, and no other thread may go on."""
    logger.error("lease.lost")
    os._exit(EXIT_UNREACHABLE)


@contextmanager
def held(
    store: StoreClient, lease_seconds: float, on_lost: Callable[[], None] = end_process
) -> Iterator[None]:
    """Keep the lease for as long as the block lasts."""
    leaving = threading.Event()
    thread = threading.Thread(
        target=_renew, args=(store, lease_seconds, on_lost, leaving), name="lease"
    )
    thread.start()
    try:
        yield
    finally:
        leaving.set()
        thread.join()


def _renew(
    store: StoreClient,
    lease_seconds: float,
    on_lost: Callable[[], None],
    leaving: threading.Event,
) -> None:
    awake = time.monotonic()
    while not leaving.wait(lease_seconds / RENEWALS_PER_LEASE):
        if time.monotonic() - awake > lease_seconds:
            return on_lost()  # this process was stopped meanwhile
        awake = time.monotonic()
        try:
            store.renew()
        except LeaseLost:
            return on_lost()
        except StoreLost:
            return None  # the engine's thread will notice, too
    return None
