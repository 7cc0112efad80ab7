"""The sequences of a pool and whose they are. Synchronous; knows no socket and no Redis.

A sequence is *waiting* (in line for blocks), *following* (somebody computes what it will
share), *parked* (blocks, nobody's) or *owned*. Whatever parks it, be it the handoff to
decode, a drain or a worker's death, ends in the same line: it is announced, and the next
worker adopts it with the next generation.

Longer than other modules: every way to get or to lose a sequence is to be seen together.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from kv.operations import Advanced, Gone, Growth, Held, Progress, Queued, Record
from kvstore.blocks import BlockPool
from kvstore.counts import Counts
from kvstore.division import Division
from kvstore.records import SequenceRecord, Status
from kvstore.room import Room
from protocol.memory import KVGeometry
from protocol.messages import PrefillJob, RequestId, TransferJob

MAX_DEATHS = 3  # owners in a row that died without one step: the request is poison
FOREVER = 1 << 62  # more attempts than anybody makes
MAX_ENDED = 16_384  # requests remembered after their end, so that none starts again
DEADLY = f"{MAX_DEATHS} workers in a row died on this request"


@dataclass(frozen=True, slots=True)
class Failure:
    """A request that the store gave up on."""

    request: PrefillJob
    reason: str


class Store:
    """Who may compute what."""

    def __init__(
        self,
        geometry: KVGeometry,
        num_blocks: int,
        max_waiting: int,
        division: Division | None = None,
    ) -> None:
        self.geometry = geometry
        self.division = division or Division()
        self._max_waiting = max_waiting
        self.counts = Counts()
        self._room = Room(num_blocks, self.counts)
        self.announcements: deque[RequestId] = deque()  # parked, and to be announced
        self.failures: deque[Failure] = deque()  # given up on: their clients must know
        self._num_admitted = 0
        self._records: dict[RequestId, SequenceRecord] = {}
        self._owned: dict[str, dict[RequestId, SequenceRecord]] = {}
        # Of each worker, what it has to give back as soon as it is between two steps.
        self._due: dict[str, list[SequenceRecord]] = {}
        self._carriers: set[str] = set()  # peers that move K/V and compute nothing
        self._disowned: list[RequestId] = []  # since the last step was recorded
        # Parked at the last reminder, and since then perhaps forgotten by who heard it.
        self._forgotten: set[tuple[RequestId, int]] = set()
        # Up to which attempt a request has ended, or moved on.
        self._ended: OrderedDict[RequestId, int] = OrderedDict()

    @property
    def blocks(self) -> BlockPool:
        return self._room.blocks

    @property
    def num_waiting(self) -> int:
        """Sequences that nobody can compute yet."""
        return self._room.num_waiting

    @property
    def num_parked(self) -> int:
        return self._num_in(Status.PARKED)

    @property
    def num_live_tokens(self) -> int:
        """Tokens with K/V that some sequence needs; shared ones count for each."""
        return sum(record.num_computed_tokens for record in self._records.values())

    def _num_in(self, status: Status) -> int:
        return sum(record.status is status for record in self._records.values())

    @property
    def owners(self) -> list[str]:
        """The workers that hold something."""
        holding = [worker_id for worker_id, held in self._owned.items() if held]
        return [peer for peer in holding if peer not in self._carriers]

    def parked(self, request_id: RequestId) -> SequenceRecord | None:
        """The record, if it is still nobody's."""
        record = self._records.get(request_id)
        return record if record and record.status is Status.PARKED else None

    def admit(self, job: PrefillJob, worker_id: str) -> Record | Queued | Gone:
        """Make the record of a new request, or adopt what an announced job names."""
        if known := self._records.get(job.request_id):
            return self._come_back(known, job, worker_id)
        if self._has_ended(job):
            return Gone()
        return self._enter(self._new_record(job), worker_id)

    def _new_record(self, job: PrefillJob) -> SequenceRecord:
        self._num_admitted += 1
        return SequenceRecord.admit(job, self.geometry, self._num_admitted)

    def _enter(self, record: SequenceRecord, worker_id: str) -> Record | Queued | Gone:
        if record.max_blocks > self.blocks.num_blocks:
            return self._refuse(record, "the request can never fit into the pool")
        if self._room.num_waiting >= self._max_waiting:
            return self._refuse(record, "too many requests wait for KV blocks")
        self._records[record.request_id] = record
        if self._room.num_in_line or not self._room.place(record):
            self._room.wait(record)
        if record.status is Status.PARKED:
            return self._adopt(record, worker_id)
        return Queued()

    def adopt(
        self, request_id: RequestId, generation: int, worker_id: str
    ) -> Record | Gone:
        """Hand a parked sequence over, unless somebody took it since `generation`."""
        record = self.parked(request_id)
        if record is None or record.generation != generation:
            return Gone()
        self.counts.adopted()
        return self._adopt(record, worker_id)

    def record(self, steps: Iterable[Progress], worker_id: str) -> list[SequenceRecord]:
        """Take steps in, and no more than that; the answer is whose they were."""
        owned = self._owned.get(worker_id, {})
        recorded = []
        for step in steps:
            record = owned.get(step.request_id)
            if record is not None and record.generation == step.generation:
                if forked := self._room.fill(record, step):
                    self._announce(*forked)
                recorded.append(record)
        return recorded

    def advance(
        self, steps: Sequence[Progress], worker_id: str, pile_tokens: int = 0
    ) -> Advanced:
        """Record one step; answer with the blocks that the next one needs.

        Between two steps the worker writes nowhere: the moment to take blocks back.
        """
        owned = self._owned.get(worker_id, {})
        self._disowned.clear()  # also what it did not step may be taken from it
        recorded = self.record(steps, worker_id)
        growing = [record for record in recorded if record.num_blocks_to_grow]
        for record in self._due.pop(worker_id, ()):
            if record.owner == worker_id and record.is_due:
                self._let_go(record)
        growth = list(self._grow_all(growing, worker_id))
        self._serve_line()
        named = [step.request_id for step in steps] + self._disowned
        gone = dict.fromkeys(id for id in named if id not in owned)
        self._look_at_queue(worker_id, pile_tokens)
        # Unchecked: it is the answer to every step.
        return Advanced.model_construct(
            growth=tuple(growth), gone=tuple(gone), part=self.division.part(worker_id)
        )

    def park(self, sequences: Iterable[Held], worker_id: str) -> None:
        for record in self._held(sequences, worker_id):
            self._park(record)
        self._serve_line()

    def release(self, sequences: Iterable[Held], worker_id: str) -> None:
        for record in self._held(sequences, worker_id):
            self._end(record)
        self._serve_line()

    def forget(self, sequences: Iterable[Held], worker_id: str) -> None:
        """Nobody was there to be told, or it moved on to another pool.

        Unlike what has ended it may come again, by a later attempt.
        """
        for record in self._held(sequences, worker_id):
            if record.is_recalled:
                self._park(record)
            else:
                self._end(record, record.request.attempt)
        self._serve_line()

    def cancel(self, request_id: RequestId) -> None:
        """Free the request's blocks: now, or when its owner's step is done."""
        record = self._records.get(request_id)
        if record is None:
            self._remember(request_id)  # its job may still be in the stream
        elif record.owner is not None:
            record.is_cancelled = True
            self._demand(record)
        else:
            self._end(record)
            self._serve_line()

    def detach(self, worker_id: str) -> None:
        """The worker is dead: what it held is parked at its last advanced token."""
        for record in list(self._owned.get(worker_id, {}).values()):
            self._lose(record)
        self._owned.pop(worker_id, None)
        self._due.pop(worker_id, None)
        self.blocks.lift_quarantine(worker_id)
        self._serve_line()

    def fence(self, worker_id: str) -> None:
        """The worker hung up, and its last step may still run on a GPU: others go on with
        what it held. What it may write to is given to nobody else before `detach`.
        """
        for record in list(self._owned.get(worker_id, {}).values()):
            if not self._room.fence(record, worker_id):
                record.is_preempted = True
            self._lose(record)
        self._serve_line()

    def expire(self, worker_id: str) -> None:
        """The worker hangs, and may still write: others go on with what it held."""
        for record in list(self._owned.get(worker_id, {}).values()):
            if not self._room.isolate(record, worker_id):
                record.is_preempted = True
            self._lose(record)
        self._serve_line()

    @contextmanager
    def carrying(self, name: str) -> Iterator[str]:
        """A peer of this process that moves K/V: it computes nothing, nor hangs alone.

        What it holds at its end is parked.
        """
        self._carriers.add(name)
        try:
            yield name
        finally:
            held = self._owned.get(name, {}).values()
            self.park([Held(r.request_id, r.generation) for r in held], name)
            self._owned.pop(name, None)
            self._due.pop(name, None)
            self._carriers.remove(name)

    def lend(
        self, request_id: RequestId, attempt: int, generation: int, carrier: str
    ) -> Record | Gone:
        """A parked sequence to be sent, if it is still that version of it."""
        record = self.parked(request_id)
        if record is None or record.request.attempt != attempt:
            return Gone()
        return self.adopt(request_id, generation, carrier)

    def receive(self, job: TransferJob, carrier: str) -> Record | Queued | Gone | None:
        """The right to fetch a sequence from its source.

        None when it is here already, or has ended: its source may forget it.
        """
        known = self._records.get(job.sequence.request_id)
        if known is None:
            if self._has_ended(job.sequence):
                return None
            return self._expect(job, carrier)
        if known.transfer is None:
            self._readdress(known, job.sequence)
            return None
        if _version(job) > _version(known.transfer):
            known.transfer = job
        is_same = known.transfer.sequence.token_ids == tuple(known.token_ids)
        if is_same or known.owner is not None:
            return self._come_back(known, job.sequence, carrier)
        self._drop(known)  # its source went on meanwhile
        answer = self._expect(known.transfer, carrier)
        self._serve_line()
        return answer

    def expected(self, request_id: RequestId) -> TransferJob:
        """The latest that was heard of a sequence which is fetched."""
        job = self._records[request_id].transfer
        assert job, "it is here already"
        return job

    def _expect(self, job: TransferJob, carrier: str) -> Record | Queued | None:
        record = self._new_record(job.sequence)
        record.transfer = job
        record.num_cached_tokens = job.num_cached_tokens
        answer = self._enter(record, carrier)
        return None if isinstance(answer, Gone) else answer

    def received(self, step: Progress, carrier: str) -> TransferJob | None:
        """Its K/V is here: it is parked like any other.

        The answer is the latest that was heard of it meanwhile.
        """
        held = Held(step.request_id, step.generation)
        for record in self._held([held], carrier):
            job, record.transfer = record.transfer, None
            if step.num_computed_tokens > record.num_computed_tokens:
                self.advance([step], carrier)
            self.park([held], carrier)
            return job
        return None

    def give_up(self, held: Held, job: TransferJob, carrier: str) -> None:
        """Its source has it no more: forget it, unless it was heard of since that job."""
        for record in self._held([held], carrier):
            if record.transfer and _version(record.transfer) > _version(job):
                self._park(record)
            else:
                self._drop(record)
        self._serve_line()

    def fail(self, held: Held, reason: str, carrier: str) -> None:
        """It can never be served: its client gets an error."""
        for record in self._held([held], carrier):
            self.failures.append(Failure(record.request, reason))
            self._end(record)
        self._serve_line()

    def remind(self) -> None:
        """Announce again what was parked at the last reminder already.

        Who heard of it may have died; who knows of it by now pays no attention.
        """
        parked = {
            (record.request_id, record.generation)
            for record in self._records.values()
            if record.status is Status.PARKED
        }
        self.announcements.extend(id for id, _ in parked & self._forgotten)
        self._forgotten = parked

    def drop_late(self, now: float) -> None:
        """Nobody waits for what is parked, and for a pool that is away, for so long."""
        late = [
            record.request_id
            for record in self._records.values()
            if record.owner is None and record.request.deadline < now
        ]
        for request_id in late:
            self.cancel(request_id)

    def check(self) -> None:
        """Whole-structure invariants; raises AssertionError."""
        owned = {id for held in self._owned.values() for id in held}
        for record in self._records.values():
            is_owned = record.status is Status.OWNED
            assert is_owned == (record.request_id in owned), "an owner lost its record"
            assert is_owned == (record.owner is not None), "owned by nobody"
        can_wait = self.num_parked or owned or self.blocks.num_quarantined
        assert can_wait or not self._records, "everybody waits, and for nobody"
        self._room.check(list(self._records.values()))

    def _held(
        self, sequences: Iterable[Held], worker_id: str
    ) -> Iterable[SequenceRecord]:
        owned = self._owned.get(worker_id, {})
        for held in sequences:
            record = owned.get(held.request_id)
            if record is not None and record.generation == held.generation:
                yield record

    def _lose(self, record: SequenceRecord) -> None:
        """Its owner is lost: others go on, unless too many were lost with it."""
        record.num_deaths += 1
        if record.num_deaths < MAX_DEATHS:
            self.counts.recovered()
            self._park(record)
        else:
            self.failures.append(Failure(record.request, DEADLY))
            self._end(record)

    def _refuse(self, record: SequenceRecord, reason: str) -> Gone:
        self.failures.append(Failure(record.request, reason))
        self._remember(record.request_id)
        return Gone()

    def _grow_all(
        self, growing: list[SequenceRecord], worker_id: str
    ) -> Iterable[Growth]:
        """Blocks for the next step, the oldest first: the youngest must make room."""
        for record in sorted(growing, key=lambda record: record.age):
            if record.owner == worker_id and (blocks := self._grow(record)):
                yield Growth(request_id=record.request_id, block_ids=tuple(blocks))

    def _grow(self, record: SequenceRecord) -> list[int]:
        while (blocks := self._room.grow(record)) is None:
            if not self._preempt_youngest(record.owner):
                self._disown(record)
                self._room.wait(record)
                return []
            if record.owner is None:  # it was the youngest itself
                return []
        return blocks

    def _preempt_youngest(self, worker_id: str | None = None) -> bool:
        """Take its blocks; False if it has to wait for the end of its owner's step.

        `worker_id` is known to be between two steps.
        """
        youngest = max(
            (record for record in self._records.values() if record.block_table),
            key=lambda record: record.age,
        )
        if youngest.owner in (None, worker_id):
            self._preempt(youngest)
            return True
        if not youngest.is_preempted:
            youngest.is_preempted = True
            self._demand(youngest)
        return False

    def _come_back(
        self, record: SequenceRecord, job: PrefillJob, worker_id: str
    ) -> Record | Gone:
        """A job of a request that is known: announced, or sent again by its gateway.

        A gateway that lost what was posted to it has a new address, and sends its
        requests again: the next owner tells it everything from the start.
        """
        if not self._readdress(record, job) and job.generation != record.generation:
            return Gone()
        if record.status is not Status.PARKED:
            return Gone()
        self.counts.adopted()
        return self._adopt(record, worker_id)

    def _readdress(self, record: SequenceRecord, job: PrefillJob) -> bool:
        """Whether the job is of a later attempt, perhaps from another address."""
        if job.attempt <= record.request.attempt:
            return False
        record.request = record.request.changed(
            reply_to=job.reply_to, attempt=job.attempt
        )
        if record.owner is not None:
            record.is_recalled = True
            self._demand(record)
        return True

    def _adopt(self, record: SequenceRecord, worker_id: str) -> Record:
        record.status = Status.OWNED
        record.owner = worker_id
        record.generation += 1
        self._owned.setdefault(worker_id, {})[record.request_id] = record
        if worker_id not in self._carriers:
            self.division.begins(worker_id)
            self._look_at_queue(worker_id)
        return record.as_answer(self.division.part(worker_id))

    def _look_at_queue(self, worker_id: str, pile_tokens: int = 0) -> None:
        """Shares may follow it. Only who computes prompts makes it longer or shorter."""
        if not self.division.has_prompts(worker_id):
            return
        missing = [
            record.num_missing_prompt_tokens
            for peer, held in self._owned.items()
            if self.division.has_prompts(peer)
            for record in held.values()
            if not record.is_prompt_computed
        ]
        self.division.see_queue(missing, pile_tokens)

    def _park(self, record: SequenceRecord) -> None:
        if record.is_due:
            self._let_go(record)
        else:
            self._announce_parked(record)

    def _announce_parked(self, record: SequenceRecord) -> None:
        self._disown(record)
        if record.num_blocks_to_grow:  # recalled, just before it was given them
            self._room.wait(record)
            return
        record.status = Status.PARKED
        self.counts.parked()
        self._announce(record)

    def _demand(self, record: SequenceRecord) -> None:
        """Its owner may be in the middle of a step, and has to give it back after it."""
        assert record.owner is not None, "nobody has it"
        self._due.setdefault(record.owner, []).append(record)
        self.division.call(record.owner)

    def _let_go(self, record: SequenceRecord) -> None:
        """What was due while its owner was in the middle of a step."""
        if record.is_cancelled:
            self._end(record)
        elif record.is_preempted:
            self._preempt(record)
        else:
            record.is_recalled = False
            self._announce_parked(record)

    def _preempt(self, record: SequenceRecord) -> None:
        """Take its blocks; it waits at its place in the line, to be computed again."""
        self._disown(record)
        record.is_preempted = record.is_recalled = False
        self._room.take_back(record)
        self.counts.preempted()

    def _announce(self, *records: SequenceRecord) -> None:
        self.announcements.extend(record.request_id for record in records)

    def _serve_line(self) -> None:
        """Place who waits; for who stalled on its way, more may be taken back."""
        self._announce(*self._room.serve_line())
        while self._room.stalled and self._preempt_youngest():
            self._announce(*self._room.serve_line())

    def _end(self, record: SequenceRecord, attempt: int = FOREVER) -> None:
        """Forget the sequence, but not that it was here."""
        self._drop(record)
        self._remember(record.request_id, attempt)

    def _drop(self, record: SequenceRecord) -> None:
        self._disown(record)
        del self._records[record.request_id]
        self._room.free(record)

    def _disown(self, record: SequenceRecord) -> None:
        if record.owner is not None:
            self._disowned.append(record.request_id)
            held = self._owned[record.owner]
            del held[record.request_id]
            if not held:
                self.division.rests(record.owner)
            record.owner = None

    def _has_ended(self, job: PrefillJob) -> bool:
        return job.attempt <= self._ended.get(job.request_id, -1)

    def _remember(self, request_id: RequestId, attempt: int = FOREVER) -> None:
        self._ended[request_id] = attempt
        if len(self._ended) > MAX_ENDED:
            self._ended.popitem(last=False)


def _version(job: TransferJob) -> tuple[int, int]:
    """The later, the more is known of a sequence."""
    return job.sequence.attempt, job.source.generation
