"""A store without a socket: the client's calls, answered in this process."""

from kv.client import StoreClient
from kv.operations import Answer, Operation, decode_answer
from kvstore.pool import Pool
from protocol.wire import encode


class DirectStore(StoreClient):
    """One worker's connection to a pool; closing it is the worker's death."""

    def __init__(self, pool: Pool, peer: str) -> None:
        self._pool = pool
        self._peer = peer

    def close(self) -> None:
        self._pool.detach(self._peer)

    def check(self) -> None:
        """There is no connection that could be lost."""

    def _exchange(self, operation: Operation) -> Answer:
        return decode_answer(encode(self._pool.answer(self._peer, operation)))
