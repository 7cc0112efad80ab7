"""Anything that workers and clients may do to a store, in any order.

A random walk over all operations, by workers whose memory remembers whose K/V each slot
holds: nobody may ever build on anything but its own prefix, whoever died, hung, or was
preempted meanwhile, and everything that was asked for comes to its end.
"""

from collections import Counter
from collections.abc import Callable
from functools import cache
from random import Random

import pytest
from jobs import GEOMETRY, prefill_job
from remembering import VOCAB_SIZE, Memory, Running, Worker, next_token

from kv.operations import Queued, Record
from kvstore.store import Store
from protocol.messages import DecodeJob, PrefillJob, RequestId

NUM_OPERATIONS = 400
NUM_WORKERS = 3
MAX_HUNG = 2
MAX_ROUNDS = 1000
SEEDS = range(20)
SALTS = ["", "", "", "s"]
POISONOUS = 0.03


class Walk:
    """One pool, its workers, their stream of jobs, and chance."""

    def __init__(self, seed: int) -> None:
        self.happened: Counter[str] = Counter()
        self._chance = Random(seed)
        self._num_blocks = self._chance.randint(12, 30)
        self._store = Store(GEOMETRY, self._num_blocks, max_waiting=15)
        self._memory = Memory(self._num_blocks, GEOMETRY.block_size)
        self._num_started = 0
        self._workers = [self._start() for _ in range(NUM_WORKERS)]
        self._hung: list[Worker] = []
        self._stream: list[PrefillJob | DecodeJob] = []
        self._requests: dict[RequestId, PrefillJob] = {}
        self._left: dict[RequestId, Record] = {}  # as it was when its owner lost it
        self._unfinished: set[RequestId] = set()
        self._poison: set[RequestId] = set()  # who computes it dies or hangs
        self._num_told: dict[RequestId, int] = {}  # tokens that an owner kept
        self._conversations = [self._tokens(20) for _ in range(3)]

    def run(self, num_operations: int) -> None:
        operations: dict[Callable[[], None], int] = {
            self.ask: 7,
            self.ask_again: 1,
            self.announce: 10,
            self.take: 20,
            self.begin: 30,
            self.finish: 30,
            self.release: 10,
            self.park: 4,
            self.forget: 1,
            self.cancel: 2,
            self.detach: 1,
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
        """A request, or some that are equal; it begins like others, or goes on."""
        start = self._chance.choice(self._conversations)
        tokens = start[: self._chance.randint(1, len(start))]
        tokens = [*tokens, *self._tokens(self._chance.randint(0, 4))]
        first = prefill_job(
            max_tokens=self._chance.randint(1, 12),
            cache_salt=self._chance.choice(SALTS),
        ).changed(token_ids=tuple(tokens), num_prompt_tokens=len(tokens))
        first = self._chance.choice([first, first, self._continued(first)])
        for _ in range(self._chance.choice([1, 1, 1, 3])):
            job = first.changed(request_id=RequestId(f"r{len(self._requests)}"))
            self._requests[job.request_id] = job
            self._unfinished.add(job.request_id)
            self._stream.append(job)
            if self._chance.random() < POISONOUS:
                self._poison.add(job.request_id)

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
            self._stream.append(job.changed(reply_to=address))

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

    def release(self) -> None:
        """Clients know that these have ended."""
        if worker := self._idle():
            self._release(worker)

    def park(self) -> None:
        if worker := self._idle():
            some = self._some(worker)
            self._store.park(worker.leave(some), worker.name)

    def forget(self) -> None:
        """A gateway is gone, and some request with it."""
        if worker := self._idle():
            some = self._some(worker)[:1]
            for running in some:
                self._unfinished.discard(running.record.request_id)
                self._num_told.pop(running.record.request_id, None)
            self._store.forget(worker.leave(some), worker.name)

    def cancel(self) -> None:
        if self._unfinished:
            request_id = self._chance.choice(sorted(self._unfinished))
            self._unfinished.discard(request_id)
            self._store.cancel(request_id)

    def detach(self) -> None:
        """A worker dies, perhaps in the middle of a step."""
        self._die(self._replace(self._chance.choice(self._workers)))

    def expire(self) -> None:
        """A worker hangs, perhaps in the middle of a step; it is not dead yet."""
        self._hang(self._replace(self._chance.choice(self._workers)))

    def wake(self) -> None:
        """A hung worker reports a step, to learn that nothing is its own any more."""
        if self._hung:
            worker = self._chance.choice(self._hung)
            advanced = self._store.advance(worker.overdue(), worker.name)
            assert sorted(advanced.gone) == sorted(worker.running)
            assert not advanced.growth

    def lose_hung(self) -> None:
        if self._hung:
            worker = self._hung.pop(self._chance.randrange(len(self._hung)))
            self._die(worker)

    def end(self) -> None:
        """Everybody works until nothing is left to do."""
        for _ in range(MAX_ROUNDS):
            while self._hung:
                self.lose_hung()
            if self._is_done():
                break
            for worker in self._workers:
                self._round(worker)
                self._settle()
        assert self._is_done(), "somebody waits for nobody"
        assert not self._unfinished, "a request was lost"
        assert self._store.blocks.num_available == self._num_blocks

    def _round(self, worker: Worker) -> None:
        """What a worker does all day."""
        self.announce()
        jobs, self._stream = self._stream, []
        for job in jobs:
            self._take(worker, job)
        if worker.is_idle:
            worker.begin([(r, r.num_missing_tokens) for r in worker.unfinished()])
        self._finish(worker)
        if worker in self._workers:
            self._release(worker)

    def _is_done(self) -> bool:
        idle = not any(worker.running for worker in self._workers)
        nothing_left = not self._store.num_waiting and not self._store.num_parked
        return idle and nothing_left and not self._stream

    def _start(self) -> Worker:
        self._num_started += 1
        return Worker(f"w{self._num_started}", self._store, self._memory)

    def _replace(self, worker: Worker) -> Worker:
        self._workers[self._workers.index(worker)] = self._start()
        return worker

    def _die(self, worker: Worker) -> None:
        worker.spoil()  # its last words
        self._store.detach(worker.name)

    def _hang(self, worker: Worker) -> None:
        if len(self._hung) == MAX_HUNG:
            self.lose_hung()
        self._hung.append(worker)
        self._store.expire(worker.name)

    def _idle(self) -> Worker | None:
        idle = [worker for worker in self._workers if worker.is_idle]
        return self._chance.choice(idle) if idle else None

    def _some(self, worker: Worker) -> list[Running]:
        running = list(worker.running.values())
        return [one for one in running if self._chance.random() < 0.5]

    def _chunks(self, worker: Worker) -> list[tuple[Running, int]]:
        """Some sequences, each with some of its missing tokens."""
        scheduled = [r for r in worker.unfinished() if self._chance.random() < 0.8]
        self._chance.shuffle(scheduled)
        return [(r, self._chance.randint(1, r.num_missing_tokens)) for r in scheduled]

    def _take(self, worker: Worker, job: PrefillJob | DecodeJob) -> None:
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
        left = self._left.pop(request_id, record)
        is_first = record.generation == 1
        num_fresh = len(record.block_table) - record.num_computed_tokens // 4
        self.happened["hit"] += is_first and record.num_cached_tokens > 0
        self.happened["forked"] += is_first and bool(record.copies)
        self.happened["copied"] += not is_first and bool(record.copies)
        self.happened["evicted"] += is_first and num_fresh > num_free
        self.happened["stalled"] += (
            record.generation == left.generation + 1
            and record.reply_to == left.reply_to
        )

    def _finish(self, worker: Worker) -> None:
        if worker.is_idle:
            return
        if not self._poison.isdisjoint(worker.computing):
            self._chance.choice([self._die, self._hang])(self._replace(worker))
            return
        before = {id: running.record for id, running in worker.running.items()}
        advanced = worker.finish()
        self._left.update((id, before[id]) for id in advanced.gone)
        for request_id, running in worker.running.items():
            self._num_told[request_id] = len(running.token_ids)

    def _release(self, worker: Worker) -> None:
        finished = [r for r in worker.running.values() if r.is_finished]
        self._unfinished -= {running.record.request_id for running in finished}
        self._store.release(worker.leave(finished), worker.name)

    def _settle(self) -> None:
        """After each operation."""
        for worker in self._hung:
            worker.spoil()
        while self._store.failures:
            failure = self._store.failures.popleft()
            self._unfinished.discard(failure.request.request_id)
            self.happened[failure.reason] += 1
        self.happened["preempted"] = self._store.num_preempted
        self.happened["quarantined"] += self._store.blocks.num_quarantined
        self._store.check()

    def _tokens(self, count: int) -> list[int]:
        return self._chance.choices(range(VOCAB_SIZE), k=count)


@cache
def walked(seed: int) -> Counter[str]:
    """What happened on the way from an empty store to an empty store."""
    walk = Walk(seed)
    walk.run(NUM_OPERATIONS)
    walk.end()
    return walk.happened


@pytest.mark.parametrize("seed", SEEDS)
def test_nobody_builds_on_foreign_memory(seed: int) -> None:
    """
    Whatever happens, K/V is its reader's own prefix, and every request has an end.
    """
    happened = walked(seed)

    assert happened["hit"]


@pytest.mark.parametrize(
    "event",
    [
        "waited",
        "hit",
        "forked",
        "copied",
        "evicted",
        "preempted",
        "stalled",
        "quarantined",
    ],
)
def test_everything_happens(event: str) -> None:
    """
    The walks are worth something: all that is rare happens on one of them at least.
    """
    happened = sum((walked(seed) for seed in SEEDS), Counter[str]())

    assert happened[event] > 0
