"""The sequences of a pool and their blocks. Synchronous; knows no socket and no Redis.

A sequence is *waiting* (no blocks), *parked* (blocks, nobody's) or *owned*. Whatever
parks it, be it the handoff to decode, a drain or a worker's death, ends in the same
line: it is announced, and the next worker adopts it with the next generation.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass

from kv.operations import Advanced, Gone, Growth, Held, Progress, Queued, Record
from kvstore.blocks import BlockPool
from kvstore.records import SequenceRecord, Status
from protocol.memory import KVGeometry
from protocol.messages import PrefillJob, RequestId

MAX_DEATHS = 3  # owners in a row that died without one step: the request is poison
MAX_ENDED = 16_384  # requests remembered after their end, so that none starts again
DEADLY = f"{MAX_DEATHS} workers in a row died on this request"


@dataclass(frozen=True, slots=True)
class Failure:
    """A request that the store gave up on."""

    request: PrefillJob
    reason: str


class Store:
    """Who may compute what, and where its K/V lies."""

    def __init__(self, geometry: KVGeometry, num_blocks: int, max_waiting: int) -> None:
        self.geometry = geometry
        self._max_waiting = max_waiting
        self.blocks = BlockPool(num_blocks)
        self.announcements: deque[RequestId] = deque()  # parked, and to be announced
        self.failures: deque[Failure] = deque()  # given up on: their clients must know
        self._records: dict[RequestId, SequenceRecord] = {}
        self._waiting: deque[SequenceRecord] = deque()
        self._owned: dict[str, dict[RequestId, SequenceRecord]] = {}
        self._ended: OrderedDict[RequestId, None] = OrderedDict()

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_parked(self) -> int:
        return sum(r.status is Status.PARKED for r in self._records.values())

    def parked(self, request_id: RequestId) -> SequenceRecord | None:
        """The record, if it is still nobody's."""
        record = self._records.get(request_id)
        return record if record and record.status is Status.PARKED else None

    def admit(self, job: PrefillJob, worker_id: str) -> Record | Queued | Gone:
        """Make the record of a new request, or adopt what an announced job names."""
        if job.request_id in self._records:
            return self.adopt(job.request_id, job.generation, worker_id)
        if job.request_id in self._ended:
            return Gone()
        record = SequenceRecord.admit(job, self.geometry)
        if record.max_blocks > self.blocks.num_blocks:
            return self._refuse(record, "the request can never fit into the pool")
        if self._waiting or not self._grant(record):
            return self._queue(record)
        self._records[record.request_id] = record
        return self._adopt(record, worker_id)

    def adopt(
        self, request_id: RequestId, generation: int, worker_id: str
    ) -> Record | Gone:
        """Hand a parked sequence over, unless somebody took it since `generation`."""
        record = self.parked(request_id)
        if record is None or record.generation != generation:
            return Gone()
        return self._adopt(record, worker_id)

    def advance(self, steps: Iterable[Progress], worker_id: str) -> Advanced:
        """Record one step; answer with the blocks that the next one needs."""
        growth, gone = [], []
        owned = self._owned.get(worker_id, {})
        for step in steps:
            record = owned.get(step.request_id)
            if record is None or record.generation != step.generation:
                gone.append(step.request_id)
                continue
            record.token_ids.extend(step.token_ids)
            record.num_computed_tokens = step.num_computed_tokens
            record.num_deaths = 0
            if blocks := self._grow(record):
                growth.append(Growth(request_id=record.request_id, block_ids=blocks))
        # Between two steps the worker writes nowhere: the moment to take blocks back.
        for record in [record for record in owned.values() if record.is_cancelled]:
            gone.append(record.request_id)
            self._end(record)
        return Advanced(growth=tuple(growth), gone=tuple(gone))

    def park(self, sequences: Iterable[Held], worker_id: str) -> None:
        for record in self._held(sequences, worker_id):
            self._park(record)

    def release(self, sequences: Iterable[Held], worker_id: str) -> None:
        for record in self._held(sequences, worker_id):
            self._end(record)

    def cancel(self, request_id: RequestId) -> None:
        """Free the request's blocks: now, or when its owner's step is done."""
        record = self._records.get(request_id)
        if record is None:
            self._remember(request_id)  # its job may still be in the stream
        elif record.status is Status.OWNED:
            record.is_cancelled = True
        else:
            self._end(record)

    def detach(self, worker_id: str) -> None:
        """The worker is dead: what it held is parked at its last advanced token."""
        for record in list(self._owned.get(worker_id, {}).values()):
            record.num_deaths += 1
            if record.num_deaths >= MAX_DEATHS:
                self.failures.append(Failure(record.request, DEADLY))
                self._end(record)
            else:
                self._park(record)
        self._owned.pop(worker_id, None)

    def check(self) -> None:
        """Whole-structure invariants; raises AssertionError."""
        self.blocks.check(record.block_table for record in self._records.values())
        promised = sum(
            record.num_promised
            for record in self._records.values()
            if record.status is not Status.WAITING
        )
        assert promised == self.blocks.num_reserved, "promises differ from the records"
        waiting = [r for r in self._records.values() if r.status is Status.WAITING]
        assert len(waiting) == len(self._waiting), "a waiting sequence is in no queue"
        owned = {id for held in self._owned.values() for id in held}
        for record in self._records.values():
            is_owned = record.status is Status.OWNED
            assert is_owned == (record.request_id in owned), "an owner lost its record"
            assert is_owned == (record.owner is not None), "owned by nobody"

    def _held(
        self, sequences: Iterable[Held], worker_id: str
    ) -> Iterable[SequenceRecord]:
        owned = self._owned.get(worker_id, {})
        for held in sequences:
            record = owned.get(held.request_id)
            if record is not None and record.generation == held.generation:
                yield record

    def _refuse(self, record: SequenceRecord, reason: str) -> Gone:
        self.failures.append(Failure(record.request, reason))
        self._remember(record.request_id)
        return Gone()

    def _queue(self, record: SequenceRecord) -> Queued | Gone:
        """Let it wait for blocks, behind those who wait already."""
        if len(self._waiting) >= self._max_waiting:
            return self._refuse(record, "too many requests wait for KV blocks")
        self._records[record.request_id] = record
        self._waiting.append(record)
        return Queued()

    def _grant(self, record: SequenceRecord) -> bool:
        """Blocks for its tokens now, and the promise of all it may grow to."""
        if not self.blocks.reserve(record.max_blocks):
            return False
        self._grow(record)
        record.status = Status.PARKED
        return True

    def _grant_waiting(self) -> None:
        """First come, first served: a long prompt at the head is not overtaken."""
        while self._waiting and self._grant(self._waiting[0]):
            self.announcements.append(self._waiting.popleft().request_id)

    def _adopt(self, record: SequenceRecord, worker_id: str) -> Record:
        record.status = Status.OWNED
        record.owner = worker_id
        record.generation += 1
        self._owned.setdefault(worker_id, {})[record.request_id] = record
        return record.as_answer()

    def _park(self, record: SequenceRecord) -> None:
        if record.is_cancelled:
            self._end(record)
            return
        self._disown(record)
        record.status = Status.PARKED
        self.announcements.append(record.request_id)

    def _grow(self, record: SequenceRecord) -> tuple[int, ...]:
        blocks = self.blocks.take_reserved(record.num_blocks_to_grow(self.geometry))
        record.block_table.extend(blocks)
        return tuple(blocks)

    def _end(self, record: SequenceRecord) -> None:
        """Forget the sequence and give its room to those who wait."""
        self._disown(record)
        del self._records[record.request_id]
        if record.status is Status.WAITING:
            self._waiting.remove(record)
        else:
            self.blocks.unreserve(record.num_promised)
            self.blocks.release(record.block_table)
        self._remember(record.request_id)
        self._grant_waiting()

    def _disown(self, record: SequenceRecord) -> None:
        if record.owner is not None:
            del self._owned[record.owner][record.request_id]
            record.owner = None

    def _remember(self, request_id: RequestId) -> None:
        self._ended[request_id] = None
        if len(self._ended) > MAX_ENDED:
            self._ended.popitem(last=False)
