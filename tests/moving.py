"""Two pools in this process, between which sequences move over a real TCP connection."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from jobs import held, loaded_pool
from owning import generated

from kv.transfer import Line
from kvstore.pool import Pool
from kvstore.records import SequenceRecord
from kvstore.sender import sending, transfer_listener
from kvstore.store import Store
from kvstore.transfer import Transfer
from kvstore.transport import LocalTransport, TcpTransport
from mesh.connect import connect
from protocol.messages import PrefillJob, Source, TransferJob

STORE = "kvstore-source"


class Prefill:
    """The pool whose sequences are fetched, and what its workers do."""

    def __init__(self, address: str, num_blocks: int) -> None:
        self.pool = loaded_pool(num_blocks)
        self._transport = TcpTransport(LocalTransport("p"), "d", address, STORE)
        for block in range(num_blocks):
            view = self.pool.memory.block(block)
            view[:] = bytes([block + 1]) * len(view)

    @property
    def store(self) -> Store:
        return store_of(self.pool)

    def park(self, job: PrefillJob) -> TransferJob:
        """Its prompt is computed, its first token sampled: what is announced then."""
        self.store.park([held(generated(self.store, job, 1))], "a")
        return self.announced()

    def announced(self) -> TransferJob:
        """The one job of those to be announced."""
        (record,) = filter(None, map(self.store.parked, self.store.announcements))
        self.store.announcements.clear()
        stream, job = self._transport.announcement(record)
        assert isinstance(job, TransferJob)
        assert stream == "tandem:{d}:transfers"
        return job

    def bytes_of(self, job: TransferJob) -> list[bytes]:
        record = self.store.parked(job.sequence.request_id)
        assert record
        return bytes_of(self.pool, record)


def store_of(pool: Pool) -> Store:
    assert pool.store
    return pool.store


def bytes_of(pool: Pool, record: SequenceRecord) -> list[bytes]:
    return [bytes(pool.memory.block(block)) for block in record.block_table]


async def fetch(pool: Pool, job: TransferJob, redis_url: str, name: str = "c") -> None:
    """Do a job as the store's receiver does."""
    store = store_of(pool)
    async with connect(redis_url) as redis:
        with store.carrying(name):
            await Transfer(pool.memory, store, job, name).run(redis)


@asynccontextmanager
async def prefill_pool(num_blocks: int = 10) -> AsyncIterator[Prefill]:
    """It listens for who fetches; afterwards its books are right."""
    with transfer_listener("127.0.0.1", 0) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        prefill = Prefill(address, num_blocks)
        async with sending(listener, prefill.pool, lambda: None):
            yield prefill
        prefill.store.check()


@asynccontextmanager
async def fake_source(
    answer: Callable[[Line, socket.socket], Awaitable[None]],
) -> AsyncIterator[str]:
    """The address of a source that does what the test says, once; then it hangs up."""
    loop = asyncio.get_running_loop()
    with transfer_listener("127.0.0.1", 0) as listener:

        async def once() -> None:
            connection, _ = await loop.sock_accept(listener)
            with connection:
                connection.setblocking(False)
                await answer(Line(connection), connection)

        answering = asyncio.create_task(once(), name="source")
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            answering.cancel()
            with suppress(asyncio.CancelledError):
                await answering


def from_elsewhere(job: TransferJob, address: str) -> TransferJob:
    source = Source(
        address=address, store=job.source.store, generation=job.source.generation
    )
    return job.changed(source=source)
