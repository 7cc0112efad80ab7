"""A random walk over two stores between which sequences move, and all that may go wrong.

One pool computes prompts, the other one answers; jobs come late, twice or in another
order, connections break at either end, stores lose their memory, gateways ask again.
The wire is left out: a transfer is what both stores are told of it.
"""

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from random import Random

from jobs import GEOMETRY, held, prefill_job, step
from remembering import VOCAB_SIZE, Memory, Running, Worker

from kv.operations import Record
from kvstore.store import Store
from kvstore.transport import Job, LocalTransport, TcpTransport
from protocol import keys
from protocol.messages import DecodeJob, PrefillJob, RequestId, TransferJob

NUM_ROUNDS = 60  # to the end


class Place:
    """One pool: its store of the moment, and a worker."""

    def __init__(self, pool: str, num_blocks: int, number: int) -> None:
        self.store = Store(GEOMETRY, num_blocks, max_waiting=8)
        self.memory = Memory(num_blocks, GEOMETRY.block_size)
        self.worker = Worker("w", self.store, self.memory)
        self.id = f"{pool}-{number}"
        self.num_blocks = num_blocks

    def is_empty(self) -> bool:
        num_left = self.store.num_waiting + self.store.num_parked
        is_free = self.store.blocks.num_available == self.num_blocks
        return not num_left and is_free and not self.worker.running


@dataclass
class Underway:
    """A sequence that is sent: what both stores know of it."""

    job: TransferJob
    here: Record  # at the receiver
    there: Record  # at the source
    source: Place
    name: str  # of the carrier, at both
    carriers: ExitStack


class Journeys:
    """The way from two empty stores to two empty stores."""

    def __init__(self, chance: Random) -> None:
        self.happened: Counter[str] = Counter()
        self._chance = chance
        self._numbers = count()
        self._prefill, self._decode = self._new("p"), self._new("d")
        self._streams: dict[str, list[Job]] = {
            key: []
            for key in (
                keys.prefill("p"),
                keys.prefill("d"),
                keys.decode("d"),
                keys.transfers("d"),
            )
        }
        self._requests: dict[RequestId, PrefillJob] = {}
        self._told: dict[RequestId, list[int]] = {}  # all tokens that a client has
        self._open: set[RequestId] = set()
        self._underway: list[Underway] = []
        self._common = self._tokens(12)

    def run(self, num_operations: int) -> None:
        operations: dict[Callable[[], None], int] = {
            self.ask: 8,
            self.ask_again: 2,
            self.prefill: 25,
            self.start: 20,
            self.arrive: 10,
            self.cut: 4,
            self.decode: 25,
            self.cancel: 2,
            self.remind: 1,
            self.lose_prefill: 2,
            self.lose_decode: 1,
        }
        deeds = self._chance.choices(
            list(operations), list(operations.values()), k=num_operations
        )
        for deed in deeds:
            deed()
            self._settle()

    def end(self) -> None:
        """Everything arrives, and all compute until nothing is left."""
        for _ in range(NUM_ROUNDS):
            self.remind()
            self.prefill()
            self._settle()
            while self._streams[keys.transfers("d")]:
                self.start()
                self._settle()
            while self._underway:
                self._arrive(self._underway.pop(0), is_told=True)
                self._settle()
            self.decode()
            self._settle()
        assert not self._open, "a request was lost"
        assert self._prefill.is_empty(), "something is held where prompts are computed"
        assert self._decode.is_empty(), "something is held where answers are"

    def ask(self) -> None:
        request_id = RequestId(f"r{len(self._requests)}")
        tokens = self._common[: self._chance.randint(1, 12)]
        tokens = [*tokens, *self._tokens(self._chance.choice([0, 0, 5]))]
        job = prefill_job(request_id, max_tokens=self._chance.randint(1, 8))
        job = job.changed(token_ids=tuple(tokens), num_prompt_tokens=len(tokens))
        self._requests[request_id], self._told[request_id] = job, tokens
        self._open.add(request_id)
        self._streams[keys.prefill("p")].append(job)

    def ask_again(self) -> None:
        """A gateway that lost its mailbox sends all its requests again."""
        for request_id in sorted(self._open):
            job = self._requests[request_id]
            job = job.changed(attempt=job.attempt + 1)
            self._requests[request_id] = job
            token_ids = tuple(self._told[request_id])
            again = job.changed(token_ids=token_ids)
            self._streams[keys.prefill("p")].append(again)

    def remind(self) -> None:
        """What was announced to a store that died is announced again."""
        self._prefill.store.remind()

    def prefill(self) -> None:
        """The first pool's worker takes some jobs, computes, and hands over."""
        self._work(self._prefill, keys.prefill("p"))

    def decode(self) -> None:
        """The second pool's worker does the same, and goes on with the answers."""
        self._work(self._decode, keys.prefill("d"), keys.decode("d"))

    def start(self) -> None:
        """The second store reads one of its jobs, perhaps not for the last time."""
        stream = self._streams[keys.transfers("d")]
        if not stream:
            return
        job = self._taken(stream)
        assert isinstance(job, TransferJob)
        with ExitStack() as carriers:
            name = f"c{next(self._numbers)}"
            for place in (self._prefill, self._decode):
                carriers.enter_context(place.store.carrying(name))
            answer = self._decode.store.receive(job, name)
            if answer is None:
                self._let_forget(job)
            elif isinstance(answer, Record):
                self._ask_source(answer, name, carriers)

    def _ask_source(self, here: Record, name: str, carriers: ExitStack) -> None:
        job = self._decode.store.expected(here.request_id)
        there = self._lent(job, name)
        if there is None:
            self.happened["gone"] += 1
            self._decode.store.give_up(held(here), job, name)
            return
        assert there.token_ids == here.token_ids, "its source has another version"
        self._underway.append(
            Underway(job, here, there, self._prefill, name, carriers.pop_all())
        )

    def _lent(self, job: TransferJob, name: str) -> Record | None:
        if job.source.store != self._prefill.id:
            return None
        answer = self._prefill.store.lend(
            job.sequence.request_id,
            job.sequence.attempt,
            job.source.generation,
            name,
        )
        return answer if isinstance(answer, Record) else None

    def arrive(self) -> None:
        """All K/V is there; perhaps the last word to the source is lost."""
        if self._underway:
            place = self._chance.randrange(len(self._underway))
            is_told = self._chance.random() < 0.8
            self._arrive(self._underway.pop(place), is_told=is_told)

    def _arrive(self, underway: Underway, *, is_told: bool) -> None:
        here, there = underway.here, underway.there
        name = underway.name
        with underway.carriers:
            copied = {target: source for source, target in there.copies}
            num_computed = len(here.token_ids) - 1
            memory = underway.source.memory
            contents = memory.read(there.block_table, num_computed, copied)
            first = here.num_computed_tokens
            if first < num_computed:
                self._decode.memory.write(here.block_table, first, contents[first:])
            latest = self._decode.store.received(step(here, num_computed), name)
            self.happened["moved"] += latest is not None
            if is_told:
                underway.source.store.forget([held(there)], name)
            if latest and latest.source != underway.job.source:
                self.happened["latest"] += 1
                self._let_forget(latest)

    def cut(self) -> None:
        """A connection breaks; both stores live, and try again."""
        if self._underway:
            place = self._chance.randrange(len(self._underway))
            with self._underway.pop(place).carriers:
                self.happened["cut"] += 1

    def cancel(self) -> None:
        if self._open:
            request_id = self._chance.choice(sorted(self._open))
            self._open.discard(request_id)
            self._prefill.store.cancel(request_id)
            self._decode.store.cancel(request_id)

    def lose_prefill(self) -> None:
        """The first store dies; the second one finds nobody where it asks.

        Of what was under way some has arrived already.
        """
        self.happened["lost"] += 1
        for underway in list(self._underway):
            if self._chance.random() < 0.5:
                self._underway.remove(underway)
                lost = held(underway.here)
                self._decode.store.give_up(lost, underway.job, underway.name)
                underway.carriers.close()
        self._prefill = self._new("p")
        self.ask_again()

    def lose_decode(self) -> None:
        """The second store dies; the first one keeps what was not told of."""
        self.happened["lost"] += 1
        for underway in self._underway:
            underway.carriers.close()
        self._underway.clear()
        self._decode = self._new("d")
        self.ask_again()

    def _let_forget(self, job: TransferJob) -> None:
        with self._prefill.store.carrying("teller") as name:
            if there := self._lent(job, name):
                self._prefill.store.forget([held(there)], name)

    def _work(self, place: Place, *streams: str) -> None:
        worker = place.worker
        for stream in streams:
            while self._streams[stream] and self._chance.random() < 0.9:
                self._take(place, self._taken(self._streams[stream]))
        worker.begin([(r, r.num_missing_tokens) for r in worker.unfinished()])
        if not worker.is_idle:
            worker.finish()
        for running in worker.running.values():
            told = self._told[running.record.request_id]
            if len(running.token_ids) > len(told):
                told[:] = running.token_ids
        ended = [r for r in worker.running.values() if r.is_finished]
        self._open -= {running.record.request_id for running in ended}
        place.store.release(worker.leave(ended), worker.name)
        if place is self._prefill:
            self._hand_over(worker)

    def _hand_over(self, worker: Worker) -> None:
        computed = [r for r in worker.running.values() if has_begun(r)]
        self._prefill.store.park(worker.leave(computed), worker.name)

    def _take(self, place: Place, job: Job) -> None:
        match job:
            case PrefillJob():
                answer = place.store.admit(job, "w")
            case DecodeJob(request_id=request_id, generation=generation):
                answer = place.store.adopt(request_id, generation, "w")
            case _:
                raise AssertionError("workers move nothing")
        if isinstance(answer, Record):
            place.worker.adopt(answer, "")

    def _taken(self, stream: list[Job]) -> Job:
        place = self._chance.randrange(len(stream))
        job = stream[place]
        if self._chance.random() < 0.9:
            del stream[place]
        return job

    def _settle(self) -> None:
        """After each operation: announcements go out, books are right."""
        tcp = TcpTransport(LocalTransport("p"), "d", "host:1", self._prefill.id)
        for place, transport in (
            (self._prefill, tcp),
            (self._decode, LocalTransport("d")),
        ):
            store = place.store
            while store.announcements:
                if record := store.parked(store.announcements.popleft()):
                    stream, job = transport.announcement(record)
                    self._streams[stream].append(job)
            while store.failures:
                failure = store.failures.popleft()
                self._open.discard(failure.request.request_id)
                self.happened[failure.reason] += 1
            store.check()
        self.happened["preempted"] += self._decode.store.counts.preemptions
        self.happened["waited"] += self._decode.store.num_waiting

    def _new(self, pool: str) -> Place:
        return Place(pool, self._chance.randint(8, 20), next(self._numbers))

    def _tokens(self, count: int) -> list[int]:
        return self._chance.choices(range(VOCAB_SIZE), k=count)


def has_begun(running: Running) -> bool:
    """Its prompt is computed, and there is a first token."""
    num_outputs = len(running.token_ids) - running.record.num_prompt_tokens
    return num_outputs > 0 and running.num_missing_tokens == 1
