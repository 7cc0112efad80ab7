"""A random walk over all operations of a store, by workers that remember.

One pool, three workers, their stream of jobs, and chance: requests that begin alike,
chunked prompts, workers that die or hang in the middle of a step, jobs that come late,
twice or in another order.
"""

from collections import Counter
from collections.abc import Callable
from itertools import count
from random import Random

from jobs import GEOMETRY, prefill_job
from remembering import VOCAB_SIZE, Memory, Notes, Running, Worker, next_token

from kv.operations import Queued, Record
from kvstore.division import Division
from kvstore.store import Store
from protocol.messages import DecodeJob, PrefillJob, RequestId

NUM_WORKERS = 3
MAX_HUNG = 2
NUM_ROUNDS = 100  # to the end
SALTS = ["", "", "", "s"]
LONGEST = 20  # tokens that prompts have in common
POISONOUS = 0.03  # the share of requests that nobody survives
CONTINUED = 0.3  # and of those that come with a part of their output


class Walk:
    """The way from an empty store to an empty store; `happened` counts what was rare."""

    def __init__(self, chance: Random) -> None:
        self.happened: Counter[str] = Counter()
        self._chance = chance
        self._num_blocks = self._chance.randint(12, 30)
        self._notes = Notes()
        division = Division(call=self._notes.called.add)
        self._store = Store(GEOMETRY, self._num_blocks, 15, division)
        self._memory = Memory(self._num_blocks, GEOMETRY.block_size)
        self._numbers = count()
        self._workers = [self._start() for _ in range(NUM_WORKERS)]
        self._hung: list[Worker] = []
        self._dying: list[Worker] = []  # killed, and their last steps still run
        self._stream: list[PrefillJob | DecodeJob] = []
        self._requests: dict[RequestId, PrefillJob] = {}
        self._left: dict[RequestId, Record] = {}  # as it was when its owner lost it
        self._unfinished: set[RequestId] = set()
        self._poison: set[RequestId] = set()  # who computes it dies or hangs
        self._num_told: dict[RequestId, int] = {}  # tokens that an owner kept
        self._conversations = [self._tokens(LONGEST) for _ in range(3)]

    def run(self, num_operations: int) -> None:
        operations: dict[Callable[[], None], int] = {
            self.ask: 7,
            self.ask_again: 1,
            self.announce: 10,
            self.take: 20,
            self.begin: 30,
            self.finish: 30,
            self.go_on: 10,
            self.release: 10,
            self.park: 4,
            self.forget: 1,
            self.cancel: 2,
            self.detach: 1,
            self.hang_up: 2,
            self.bury: 1,
            self.expire: 2,
            self.wake: 1,
            self.lose_hung: 2,
        }
        deeds = self._chance.choices(
            list(operations), list(operations.values()), k=num_operations
        )
        for deed in deeds:
            deed()
            self._settle()

    def ask(self) -> None:
        """Some requests at once that begin alike, and like earlier ones."""
        start = self._chance.choice(self._conversations)
        start = start[: self._chance.randint(1, len(start))]
        salt = self._chance.choice(SALTS)
        for _ in range(self._chance.choice([1, 1, 1, 3])):
            self._ask(
                [*start, *self._tokens(self._chance.choice([0, 0, 0, 0, 8]))], salt
            )

    def _ask(self, tokens: list[int], salt: str) -> None:
        request_id = RequestId(f"r{len(self._requests)}")
        max_tokens = self._chance.randint(1, 12)
        job = prefill_job(request_id, max_tokens=max_tokens, cache_salt=salt)
        job = job.changed(token_ids=tuple(tokens), num_prompt_tokens=len(tokens))
        if self._chance.random() < CONTINUED:
            job = self._continued(job)
        if self._chance.random() < POISONOUS:
            self._poison.add(request_id)
        self._requests[request_id] = job
        self._unfinished.add(request_id)
        self._stream.append(job)

    def _continued(self, job: PrefillJob) -> PrefillJob:
        """The same from a gateway that has some of the output, from another store."""
        tokens = list(job.token_ids)
        for _ in range(self._chance.randint(0, job.sampling.max_tokens)):
            tokens.append(next_token(tokens))
        return job.changed(token_ids=tuple(tokens))

    def ask_again(self) -> None:
        """A gateway that has a new address sends its request again."""
        if self._requests:
            job = self._chance.choice(list(self._requests.values()))
            address = f"g{self._chance.randint(1, 3)}"
            again = job.changed(reply_to=address, attempt=job.attempt + 1)
            self._requests[job.request_id] = again
            self._stream.append(again)

    def announce(self) -> None:
        while self._store.announcements:
            record = self._store.parked(self._store.announcements.popleft())
            if record is not None:
                self._stream.append(record.next_job())

    def take(self) -> None:
        """A worker reads a job, in any order; some jobs are delivered twice."""
        worker = self._idle()
        if not worker or not self._stream:
            return
        place = self._chance.randrange(len(self._stream))
        job = self._stream[place]
        if self._chance.random() < 0.9:
            del self._stream[place]
        self._take(worker, job)

    def begin(self) -> None:
        if worker := self._idle():
            worker.begin(self._chunks(worker))

    def finish(self) -> None:
        computing = [worker for worker in self._workers if not worker.is_idle]
        if computing:
            self._finish(self._chance.choice(computing))

    def go_on(self) -> None:
        """A worker does whole steps, and nobody else does anything meanwhile."""
        worker = self._idle()
        for _ in range(self._chance.randint(2, 6)):
            if worker in self._workers:
                worker.begin([(r, r.num_missing_tokens) for r in worker.unfinished()])
                self._finish(worker)

    def release(self) -> None:
        """Clients know that these have ended."""
        if worker := self._idle():
            self._release(worker)

    def park(self) -> None:
        if worker := self._idle():
            some = self._some(worker)
            self._notes.read(self._store, worker.name)
            self._store.park(worker.leave(some), worker.name)

    def forget(self) -> None:
        """A gateway is gone, and some request with it."""
        if worker := self._idle():
            some = self._some(worker)[:1]
            for running in some:
                self._unfinished.discard(running.record.request_id)
                self._num_told.pop(running.record.request_id, None)
            self._notes.read(self._store, worker.name)
            self._store.forget(worker.leave(some), worker.name)

    def cancel(self) -> None:
        if self._unfinished:
            request_id = self._chance.choice(sorted(self._unfinished))
            self._unfinished.discard(request_id)
            self._store.cancel(request_id)

    def detach(self) -> None:
        """A worker dies, perhaps in the middle of a step."""
        self._die(self._replace(self._chance.choice(self._workers)))

    def hang_up(self) -> None:
        """A worker on a GPU is killed, perhaps in the middle of a step, which goes on."""
        worker = self._replace(self._chance.choice(self._workers))
        self._dying.append(worker)
        self._read_last(worker)
        self._store.fence(worker.name)

    def bury(self) -> None:
        """Its process has ended, and with it its last step."""
        if self._dying:
            self._store.detach(self._dying.pop(0).name)

    def expire(self) -> None:
        """A worker hangs, perhaps in the middle of a step; it is not dead yet."""
        self._hang(self._replace(self._chance.choice(self._workers)))

    def wake(self) -> None:
        """A hung worker reports a step, to learn that nothing is its own any more."""
        for worker in self._hung[:1]:
            advanced = self._store.advance(worker.overdue(), worker.name)
            assert sorted(advanced.gone) == sorted(worker.running)
            assert not advanced.growth

    def lose_hung(self) -> None:
        if self._hung:
            worker = self._hung.pop(self._chance.randrange(len(self._hung)))
            self._die(worker)

    def end(self) -> None:
        """Everybody works until nothing is left to do."""
        for _ in range(NUM_ROUNDS):
            while self._hung:
                self.lose_hung()
            self.bury()
            for worker in self._workers:
                self._round(worker)
                self._settle()
        assert self._is_done(), "somebody waits for nobody"
        assert not self._unfinished, "a request was lost"
        assert self._store.blocks.num_available == self._num_blocks

    def _round(self, worker: Worker) -> None:
        """What a worker does all day."""
        self.announce()
        while self._stream:
            self._take(worker, self._stream.pop(0))
        if worker.is_idle:
            worker.begin([(r, r.num_missing_tokens) for r in worker.unfinished()])
        self._finish(worker)
        if worker in self._workers:
            self._release(worker)

    def _is_done(self) -> bool:
        is_idle = not any(worker.running for worker in self._workers)
        num_left = self._store.num_waiting + self._store.num_parked
        return is_idle and not num_left and not self._stream

    def _start(self) -> Worker:
        return Worker(f"w{next(self._numbers)}", self._store, self._memory)

    def _replace(self, worker: Worker) -> Worker:
        self._workers[self._workers.index(worker)] = self._start()
        return worker

    def _die(self, worker: Worker) -> None:
        worker.spoil()  # its last words
        self._read_last(worker)
        self._store.detach(worker.name)

    def _read_last(self, worker: Worker) -> None:
        """It is about to lose what it has, and notes nothing any more."""
        self.happened["outlived"] += bool(self._notes.steps.get(worker.name))
        self._notes.read(self._store, worker.name)

    def _hang(self, worker: Worker) -> None:
        if len(self._hung) == MAX_HUNG:
            self.lose_hung()
        self._hung.append(worker)
        self._read_last(worker)
        self._store.expire(worker.name)

    def _idle(self) -> Worker | None:
        idle = [worker for worker in self._workers if worker.is_idle]
        return self._chance.choice(idle) if idle else None

    def _some(self, worker: Worker) -> list[Running]:
        return [r for r in worker.running.values() if self._chance.random() < 0.5]

    def _chunks(self, worker: Worker) -> list[tuple[Running, int]]:
        """Some sequences, each with some of its missing tokens."""
        scheduled = [r for r in worker.unfinished() if self._chance.random() < 0.6]
        self._chance.shuffle(scheduled)
        return [(r, self._chance.randint(1, r.num_missing_tokens)) for r in scheduled]

    def _take(self, worker: Worker, job: PrefillJob | DecodeJob) -> None:
        self._notes.read(self._store, worker.name)
        num_free = self._store.blocks.num_free
        if isinstance(job, PrefillJob):
            answer = self._store.admit(job, worker.name)
        else:
            answer = self._store.adopt(job.request_id, job.generation, worker.name)
        self.happened["waited"] += isinstance(answer, Queued)
        if isinstance(answer, Record):
            salt = self._requests[job.request_id].cache_salt
            self._note(worker.adopt(answer, salt), num_free)

    def _note(self, running: Running, num_free: int) -> None:
        """An adoption; so many blocks were free before."""
        record = running.record
        request_id, asked = record.request_id, self._requests[record.request_id]
        assert record.token_ids[: len(asked.token_ids)] == asked.token_ids
        assert len(running.token_ids) >= self._num_told.get(request_id, 0)
        assert record.num_cached_tokens <= record.num_prompt_tokens
        left = self._left.pop(request_id, None)
        is_first = record.generation == 1
        num_shared = record.num_computed_tokens // GEOMETRY.block_size
        num_fresh = len(record.block_table) - num_shared
        self.happened["hit"] += is_first and record.num_cached_tokens > 0
        self.happened["forked"] += is_first and bool(record.copies)
        self.happened["copied"] += not is_first and bool(record.copies)
        self.happened["evicted"] += is_first and num_fresh > num_free
        if left and left.reply_to == record.reply_to:
            self.happened["stalled"] += record.generation == left.generation + 1

    def _finish(self, worker: Worker) -> None:
        if worker.is_idle:
            return
        if not self._poison.isdisjoint(worker.computing):
            self._chance.choice([self._die, self._hang])(self._replace(worker))
            return
        before = {id: running.record for id, running in worker.running.items()}
        was_called = worker.name in self._notes.called
        if advanced := worker.finish(self._notes):
            self._left.update((id, before[id]) for id in advanced.gone)
            self.happened["called"] += was_called
        else:
            self.happened["noted"] += 1
        for request_id, running in worker.running.items():
            self._num_told[request_id] = len(running.token_ids)

    def _release(self, worker: Worker) -> None:
        finished = [r for r in worker.running.values() if r.is_finished]
        for running in finished:
            self._unfinished.discard(running.record.request_id)
            self._conversations.append(running.token_ids[:LONGEST])
        self._notes.read(self._store, worker.name)
        self._store.release(worker.leave(finished), worker.name)

    def _settle(self) -> None:
        """After each operation."""
        for worker in self._hung:
            worker.spoil()
        for worker in self._dying:
            worker.linger()
        while self._store.failures:
            failure = self._store.failures.popleft()
            self._unfinished.discard(failure.request.request_id)
            self.happened[failure.reason] += 1
        self.happened["preempted"] = self._store.counts.preemptions
        self.happened["quarantined"] += self._store.blocks.num_quarantined
        self._store.check()

    def _tokens(self, count: int) -> list[int]:
        return self._chance.choices(range(VOCAB_SIZE), k=count)
