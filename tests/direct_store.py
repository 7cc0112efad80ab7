"""A store without a socket: the client's calls, answered in this process."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from kv.client import StoreClient
from kv.journal import Journal
from kv.operations import Answer, Operation, decode_answer
from kvstore.pool import Pool
from protocol.wire import encode


class DirectStore(StoreClient):
    """One worker's connection to a pool; closing it is the worker's death."""

    def __init__(self, pool: Pool, peer: str) -> None:
        self._pool = pool
        self._peer = peer

    @contextmanager
    def noting(self) -> Iterator[None]:
        """With a journal, as a real connection has one from `attach` on."""
        journals = self._pool.journals
        self._journal = Journal(os.dup(journals.open(self._peer)))
        try:
            yield
        finally:
            self._journal.close()
            journals.close(self._peer)

    def close(self) -> None:
        self._pool.detach(self._peer)

    def check(self) -> None:
        """There is no connection that could be lost."""

    def _exchange(self, operation: Operation) -> Answer:
        return decode_answer(encode(self._pool.answer(self._peer, operation)))
