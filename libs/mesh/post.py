"""Letters to mailboxes, from a thread that does not wait until they have arrived.

Straight on a connection of its own, which redis-py opens: its clients make several times
as much of a letter, on the way from one step to the next.
"""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import hiredis
from redis import ConnectionPool
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from mesh.connect import ANSWER_SECONDS, LOST
from mesh.streams import MAX_LETTERS, Fields

READ_BYTES = 1 << 16


class Post:
    """Says in `arrived` what became of the letters that it sent."""

    def __init__(self, redis_url: str) -> None:
        pool = ConnectionPool.from_url(
            redis_url,
            socket_timeout=ANSWER_SECONDS,
            socket_connect_timeout=ANSWER_SECONDS,
            protocol=2,
        )
        self._connection: Any = pool.make_connection()  # half of it has no types
        self._socket: Any = None  # of it, while it is open
        self._reader = hiredis.Reader()
        self._underway: Mapping[str, Fields] = {}

    def close(self) -> None:
        self._socket = None
        self._connection.disconnect()

    def send(self, letters: Mapping[str, Fields]) -> None:
        """Append one entry to each mailbox; those before must have arrived."""
        assert not self._underway, "what became of the last ones?"
        self._underway = letters
        self.repeat()

    def repeat(self) -> None:
        """Send again what did not arrive."""
        with suppress(*LOST):  # `arrived` tells
            if self._socket is None:
                self._connection.connect()
                self._socket = self._connection._sock
                self._reader = hiredis.Reader(replyError=ResponseError)
            self._socket.sendall(b"".join(map(_packed, self._underway.items())))

    def arrived(self) -> set[str]:
        """Wait until all have arrived; returns the mailboxes whose reader is gone.

        Raises LOST when Redis is away: they have to be repeated.
        """
        try:
            ids = [self._answer() for _ in self._underway]
        except BaseException:
            self.close()  # what still comes would be taken for another's
            raise
        letters, self._underway = self._underway, {}
        return {stream for stream, id in zip(letters, ids, strict=True) if id is None}

    def _answer(self) -> Any:
        while (answer := self._reader.gets()) is False:
            received = self._socket.recv(READ_BYTES) if self._socket else b""
            if not received:
                raise RedisConnectionError("Redis hung up")
            self._reader.feed(received)
        if isinstance(answer, ResponseError):
            raise answer
        return answer


def _packed(letter: tuple[str, Fields]) -> bytes:
    stream, fields = letter
    entry = [part for field in fields.items() for part in field]
    options = "NOMKSTREAM", "MAXLEN", "~", MAX_LETTERS, "*"
    packed: bytes = hiredis.pack_command(("XADD", stream, *options, *entry))
    return packed
