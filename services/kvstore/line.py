"""The line of sequences that wait for KV blocks, by age."""

from collections import deque

from kvstore.records import SequenceRecord


class Line:
    """First come, first served: who is at the head is not overtaken, however long."""

    def __init__(self) -> None:
        self._records: deque[SequenceRecord] = deque()

    def __len__(self) -> int:
        return len(self._records)

    @property
    def head(self) -> SequenceRecord | None:
        return self._records[0] if self._records else None

    def join(self, record: SequenceRecord) -> None:
        """At its place by age: in front, for one that was running before."""
        place = len(self._records)
        while place and self._records[place - 1].age > record.age:
            place -= 1
        self._records.insert(place, record)

    def leave(self, record: SequenceRecord) -> None:
        self._records.remove(record)
