"""Letters to mailboxes, from a thread that does not wait until they have arrived.

Straight on a connection of its own: redis-py's clients make several times as much of it.
"""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from redis import ConnectionPool

from mesh.connect import ANSWER_SECONDS, LOST
from mesh.streams import MAX_LETTERS, Fields


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
        self._underway: Mapping[str, Fields] = {}

    def close(self) -> None:
        self._connection.disconnect()

    def send(self, letters: Mapping[str, Fields]) -> None:
        """Append one entry to each mailbox; those before must have arrived."""
        assert not self._underway, "what became of the last ones?"
        self._underway = letters
        self.repeat()

    def repeat(self) -> None:
        """Send again what did not arrive."""
        with suppress(*LOST):  # `arrived` tells
            for stream, fields in self._underway.items():
                entry = [part for field in fields.items() for part in field]
                options = "NOMKSTREAM", "MAXLEN", "~", MAX_LETTERS, "*"
                self._connection.send_command("XADD", stream, *options, *entry)

    def arrived(self) -> set[str]:
        """Wait until all have arrived; returns the mailboxes whose reader is gone.

        Raises LOST when Redis is away: they have to be repeated.
        """
        ids = [self._connection.read_response() for _ in self._underway]
        letters, self._underway = self._underway, {}
        return {stream for stream, id in zip(letters, ids, strict=True) if id is None}
