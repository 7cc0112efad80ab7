"""One sequence on its way from its source into blocks of this pool.

It is admitted first, by its tokens: what the prefix cache has need not be sent, and while
there is no room it waits in line, its source remembered. When all of its K/V is here it
is parked like any other, and its source may forget it: in this order, lest both do.
"""

import asyncio
from contextlib import suppress

import structlog
from redis.asyncio import Redis

from kv.errors import Refused, TransferLost
from kv.operations import Gone, Held, Progress, Record, RefusedReply
from kv.transfer import (
    Fetch,
    Line,
    Sending,
    Taken,
    called,
    decode_answer,
    decode_done,
)
from kvstore.memory import PoolMemory
from kvstore.store import Store
from mesh import metrics
from mesh.connect import LOST
from mesh.registry import living
from protocol import keys
from protocol.messages import TransferJob
from protocol.wire import MalformedMessage

RETRY_SECONDS = 0.5

logger = structlog.get_logger()


class Transfer:
    """What one job asks for."""

    def __init__(
        self, memory: PoolMemory, store: Store, job: TransferJob, carrier: str
    ) -> None:
        """`carrier` is the name that owns the sequence at the store meanwhile."""
        self._memory = memory
        self._store = store
        self._job = job
        self._carrier = carrier

    async def run(self, redis: Redis) -> None:
        """Leaves the sequence parked, waiting, or forgotten because its source is gone."""
        match self._store.receive(self._job, self._carrier):
            case None:
                await self._let_forget(self._job)
            case Record() as record:
                self._job = self._store.expected(record.request_id)
                await self._fetch(record, redis)

    async def _fetch(self, record: Record, redis: Redis) -> None:
        source, held = self._job.source, Held(record.request_id, record.generation)
        try:
            async with called(source.address) as line:
                with metrics.TRANSFER_SECONDS.time():
                    is_whole = await self._fill(line, record)
                if not is_whole:
                    self._store.give_up(held, self._job, self._carrier)
                    return
                await self._keep(line, record)
        except (Refused, MalformedMessage) as error:
            logger.error("transfer.refused", source=source.store, reason=str(error))
            self._store.fail(held, str(error), self._carrier)
            await self._let_forget(self._job)
        except TransferLost as error:
            metrics.FAILED_TRANSFERS.inc()
            logger.warning("transfer.lost", source=source.store, reason=str(error))
            await self._retry(held, redis)

    async def _retry(self, held: Held, redis: Redis) -> None:
        """Announce it again, unless its source died: then its gateway starts it again."""
        is_alive = True
        with suppress(*LOST):
            is_alive = bool(await living(redis, keys.worker(self._job.source.store)))
        if is_alive:
            await asyncio.sleep(RETRY_SECONDS)
            self._store.park([held], self._carrier)
        else:
            self._store.give_up(held, self._job, self._carrier)

    async def _fill(self, line: Line, record: Record) -> bool:
        """Bring the K/V that is missing into its blocks; False if its source has none."""
        geometry = self._store.geometry
        num_computed = len(record.token_ids) - 1  # the last token has none yet
        if record.num_computed_tokens == num_computed:
            return True
        first = record.num_computed_tokens // geometry.block_size
        blocks = record.block_table[first : geometry.num_blocks(num_computed)]
        await line.say(self._wish(record, first))
        match await line.hear(decode_answer):
            case Gone():
                return False
            case RefusedReply(reason=reason):
                raise Refused(reason)
            case Sending(num_blocks=num_blocks) if num_blocks != len(blocks):
                raise MalformedMessage(f"{num_blocks} blocks, not {len(blocks)}")
        for block in blocks:
            await line.receive(self._memory.block(block))
        metrics.TRANSFERRED_BYTES.inc(len(blocks) * geometry.block_bytes)
        return True

    def _wish(self, record: Record, first_block: int) -> Fetch:
        assert self._memory.load, "a store without a model"
        return Fetch(
            request_id=record.request_id,
            attempt=self._job.sequence.attempt,
            generation=self._job.source.generation,
            fingerprint=self._memory.load.facts.fingerprint,
            geometry=self._store.geometry,
            first_block=first_block,
        )

    async def _keep(self, line: Line, record: Record) -> None:
        """Park it here, and let whoever else has it know."""
        source = self._job.source
        step = Progress(
            record.request_id, record.generation, len(record.token_ids) - 1, ()
        )
        latest = self._store.received(step, self._carrier)
        await self._say_taken(line, self._job)
        if latest and latest.source != source:
            await self._let_forget(latest)

    async def _let_forget(self, job: TransferJob) -> None:
        """If it is not told now, it announces the sequence again."""
        source = job.source
        try:
            async with called(source.address) as line:
                await self._say_taken(line, job)
        except (TransferLost, MalformedMessage) as error:
            logger.warning("transfer.untold", source=source.store, reason=str(error))

    async def _say_taken(self, line: Line, job: TransferJob) -> None:
        taken = Taken(
            request_id=job.sequence.request_id,
            attempt=job.sequence.attempt,
            generation=job.source.generation,
        )
        await line.say(taken)
        await line.hear(decode_done)
