"""The line of sequences that wait for KV blocks."""

from collections import deque

from kvstore.records import SequenceRecord


class Line:
    """First come, first served: who is at the head is not overtaken, however long.

    But growth comes before admission: in front are those that ran out of room on their
    way. Behind somebody who waits for the blocks that they have, they would never move.
    """

    def __init__(self) -> None:
        self._records: deque[SequenceRecord] = deque()

    def __len__(self) -> int:
        return len(self._records)

    @property
    def head(self) -> SequenceRecord | None:
        return self._records[0] if self._records else None

    def join(self, record: SequenceRecord) -> None:
        """At its place by age, which is far in front for one that was preempted."""
        place = len(self._records)
        while place and _rank(self._records[place - 1]) > _rank(record):
            place -= 1
        self._records.insert(place, record)

    def leave(self, record: SequenceRecord) -> None:
        self._records.remove(record)


def _rank(record: SequenceRecord) -> tuple[bool, int]:
    return not record.block_table, record.age
