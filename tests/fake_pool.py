"""A pool without workers: it answers jobs from a script, and remembers what it got."""

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from redis.asyncio import Redis

from mesh.connect import LOST
from mesh.streams import Consumer, Tail, post
from protocol import keys
from protocol.messages import (
    Cancel,
    Decision,
    Failed,
    FinishReason,
    ForgetShares,
    Phase,
    PoolStatus,
    PrefillJob,
    RequestId,
    Shares,
    SteeredShares,
    TokenEvent,
    TokenEvents,
    WorkerStatus,
    decode_control,
    decode_job,
)
from protocol.wire import encode

POOL = "default"
VOCAB_SIZE = 512
MAX_MODEL_LEN = 128
PHASES: tuple[Phase, ...] = ("prefill", "decode")

Script = Callable[[PrefillJob], Iterable[TokenEvents | Failed]]


def tokens(
    job: PrefillJob,
    *token_ids: int,
    index: int = 0,
    finish: FinishReason | None = None,
    num_cached_tokens: int = 0,
    logprobs: tuple[float, ...] = (),
) -> TokenEvents:
    """What a worker says when it has these tokens, from number `index` on."""
    event = TokenEvent(
        request_id=job.request_id,
        generation=job.generation,
        index=index,
        token_ids=token_ids,
        logprobs=logprobs,
        finish_reason=finish,
        num_cached_tokens=num_cached_tokens,
    )
    return TokenEvents(events=(event,))


def counting(job: PrefillJob) -> Iterable[TokenEvents]:
    """Each token is its predecessor plus one, as many as were asked for."""
    last, count = job.token_ids[-1], job.sampling.max_tokens
    for index in range(count):
        token_id = (last + 1 + index) % VOCAB_SIZE
        finish: FinishReason | None = "length" if index + 1 == count else None
        yield tokens(job, token_id, index=index, finish=finish)


def saying(*token_ids: int, finish: FinishReason | None = "stop") -> Script:
    """A script that says these tokens one by one; the last one ends the answer."""

    def script(job: PrefillJob) -> Iterable[TokenEvents]:
        for index, token_id in enumerate(token_ids):
            is_last = index + 1 == len(token_ids)
            yield tokens(job, token_id, index=index, finish=finish if is_last else None)

    return script


def silent(_: PrefillJob) -> Iterable[TokenEvents]:
    """A pool that never answers."""
    return ()


def pool_status(name: str = POOL, **changes: Any) -> PoolStatus:
    """Of a pool of a hundred blocks, all free."""
    status = PoolStatus(
        pool=name,
        store="store-1",
        model="stories260K",
        block_size=16,
        max_model_len=MAX_MODEL_LEN,
        vocab_size=VOCAB_SIZE,
        num_waiting=0,
        num_parked=0,
        total=100,
        free=100,
        cached=0,
        referenced=0,
        quarantined=0,
    )
    return status.changed(**changes)


def worker_status(pool: str, phase: Phase) -> WorkerStatus:
    return WorkerStatus(
        service=phase,
        worker_id=f"{phase}-{pool}",
        pool=pool,
        pid=1,
        host="here",
        phases=(phase,),
        ready=True,
    )


def decision(**changes: Any) -> Decision:
    """That prefill gets more, since TTFT fails."""
    decided = Decision(
        at=1.0,
        leader="g1",
        before=Shares(prefill=50, decode=50),
        shares=Shares(prefill=60, decode=40),
        reason="ttft fails",
        load=12.0,
        seen_ttft_seconds=0.9,
        seen_tpot_seconds=0.02,
        expected_ttft_seconds=0.7,
        expected_tpot_seconds=0.03,
    )
    return decided.changed(**changes)


class FakePool:
    """Reads the streams that a pool reads."""

    def __init__(self, redis: Redis, name: str = POOL) -> None:
        self._redis = redis
        self.name = name
        self._consumer = Consumer(redis, keys.prefill(name), "prefill", "fake")
        self._control = Tail(redis, keys.control(name), after=b"0")
        self.stopping = asyncio.Event()
        self.script: Script = counting
        self.jobs: list[PrefillJob] = []
        self.cancelled: list[RequestId] = []
        self.shares: list[Shares | ForgetShares] = []

    @property
    def job(self) -> PrefillJob:
        """The only job there was."""
        assert len(self.jobs) == 1, f"there were {len(self.jobs)} jobs"
        return self.jobs[0]

    async def announce(self, store: str = "store-1") -> None:
        """Say that the pool is there and ready, with the memory of this store."""
        status = pool_status(self.name, store=store)
        await self._redis.set(keys.pool(self.name), encode(status))
        for phase in PHASES:
            worker = worker_status(self.name, phase)
            await self._redis.set(keys.worker(worker.worker_id), encode(worker))

    async def vanish(self) -> None:
        """The store's heartbeat is over."""
        await self._redis.delete(keys.pool(self.name))

    async def run(self) -> None:
        """Answer jobs and note cancels, until told to stop."""
        await self._consumer.join()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._answer_jobs(), name="jobs")
            tasks.create_task(self._note_cancels(), name="cancels")

    async def say(self, reply: TokenEvents | Failed, job: PrefillJob) -> None:
        """Post one reply to the gateway that waits for the job."""
        await self.say_to(keys.replies(job.reply_to), reply)

    async def say_to(self, mailbox: str, reply: TokenEvents | Failed) -> None:
        await post(self._redis, {mailbox: {"body": encode(reply)}})

    async def _answer_jobs(self) -> None:
        while not self.stopping.is_set():
            for entry in await self._consumer.take(16, block_seconds=1):
                job = decode_job(entry.fields[b"body"])
                assert isinstance(job, PrefillJob), "the gateway sends no other jobs"
                self.jobs.append(job)
                for reply in self.script(job):
                    await self.say(reply, job)

    async def _note_cancels(self) -> None:
        while not self.stopping.is_set():
            with suppress(*LOST):  # tests take the connection away
                for entry in await self._control.read(16):
                    self._note(decode_control(entry.fields[b"body"]))

    def _note(self, order: Cancel | Shares | SteeredShares | ForgetShares) -> None:
        match order:
            case Cancel(request_id=request_id):
                self.cancelled.append(request_id)
            case SteeredShares(shares=shares):
                self.shares.append(shares)
            case Shares() | ForgetShares():
                self.shares.append(order)
