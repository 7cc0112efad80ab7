"""The journals of a pool's workers. Knows no sequence."""

from collections.abc import Iterator

import structlog

from kv.journal import JournalReader
from kv.operations import Progress
from protocol.wire import MalformedMessage

logger = structlog.get_logger()


class Journals:
    """A worker without one asks the store after each step."""

    def __init__(self) -> None:
        self._of: dict[str, JournalReader] = {}

    def open(self, peer: str) -> int:
        """A new one; the descriptor of the worker's end, to be sent to it."""
        self.close(peer)
        self._of[peer] = journal = JournalReader()
        return journal.descriptor

    def close(self, peer: str) -> None:
        if journal := self._of.pop(peer, None):
            journal.close()

    def call(self, peer: str) -> None:
        """It is to ask before it tells anybody of its next step."""
        if journal := self._of.get(peer):
            journal.call()

    def read(self, peer: str) -> Iterator[tuple[Progress, ...]]:
        """The steps that it wrote since the last time."""
        journal = self._of.get(peer)
        if journal is None:
            return
        try:
            yield from journal.read()
        except MalformedMessage as error:
            logger.warning("journal.malformed", peer=peer, reason=str(error))
            self.close(peer)  # its worker finds nobody there, and begins anew
