"""Jobs on their way from a stream into the batch: never more than it can start."""

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

import structlog
from redis.asyncio import Redis

from mesh import metrics
from mesh.connect import LOST, MAX_BLOCK_SECONDS
from mesh.streams import MAX_DELIVERIES, Consumer, Entry, post
from mesh.timing import every, pause
from protocol import keys
from protocol.messages import DecodeJob, Failed, PrefillJob, RequestId, decode_job
from protocol.wire import MalformedMessage, encode
from worker.exchange import Exchange

RETRY_SECONDS = 0.2
KEEPS_PER_LEASE = 4

logger = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Arrival:
    """A job, and the entry to acknowledge once the store knows who has it."""

    job: PrefillJob | DecodeJob
    entry: Entry
    consumer: Consumer


def by_consumer(arrivals: Iterable[Arrival]) -> Iterator[tuple[Consumer, list[Entry]]]:
    for consumer, group in groupby(arrivals, key=lambda arrival: arrival.consumer):
        yield consumer, [arrival.entry for arrival in group]


class Inbox:
    """Jobs on their way to the engine's thread, and how many more may come."""

    def __init__(self, capacity: int, exchange: Exchange) -> None:
        self._capacity = capacity
        self._exchange = exchange
        self._underway: deque[Arrival] = deque()  # the store does not know of them yet
        self._has_room = asyncio.Event()
        self._has_room.set()
        self.num_running = 0  # sequences in the batch, as of the last round told

    def __len__(self) -> int:
        return len(self._underway)

    @property
    def underway(self) -> list[Arrival]:
        return list(self._underway)

    @property
    def free_slots(self) -> int:
        return max(0, self._capacity - self.num_running - len(self._underway))

    def put(self, arrivals: list[Arrival]) -> None:
        self._underway.extend(arrivals)
        self._exchange.bring(jobs=[arrival.job for arrival in arrivals])
        self._signal()

    def settle(self, num_jobs: int, num_running: int) -> list[Arrival]:
        """The store knows of so many jobs more: these are to be acknowledged."""
        self.num_running = num_running
        settled = [self._underway.popleft() for _ in range(num_jobs)]
        self._signal()
        return settled

    async def wait_for_room(self) -> int:
        """How many may come; 0 when there is still no room after a while."""
        await pause(MAX_BLOCK_SECONDS, self._has_room)
        return self.free_slots

    def _signal(self) -> None:
        if self.free_slots:
            self._has_room.set()
        else:
            self._has_room.clear()


async def fill(
    inbox: Inbox,
    redis: Redis,
    consumer: Consumer,
    lease_seconds: float,
    stopping: asyncio.Event,
) -> None:
    """Read jobs into the inbox as long as it has room.

    Jobs that a dead consumer read and never brought to the store come first.
    """
    loop = asyncio.get_running_loop()
    next_sweep = loop.time()
    while not stopping.is_set():
        slots = await inbox.wait_for_room()
        if not slots or stopping.is_set():
            continue
        try:
            entries = []
            if loop.time() >= next_sweep:
                entries = await consumer.take_over(slots, lease_seconds)
                next_sweep = loop.time() + lease_seconds / 4
            entries = entries or await consumer.take(slots, MAX_BLOCK_SECONDS / 4)
            inbox.put([a for e in entries if (a := await _open(redis, consumer, e))])
        except LOST as error:
            logger.warning("jobs.lost", error=type(error).__name__)
            await pause(RETRY_SECONDS, stopping)


async def keep(inbox: Inbox, lease_seconds: float, stopping: asyncio.Event) -> None:
    """Jobs stay ours while a step takes longer than a lease, which all of them wait for."""
    async for _ in every(lease_seconds / KEEPS_PER_LEASE, stopping):
        try:
            for consumer, entries in by_consumer(inbox.underway):
                await consumer.keep(entries)
        except LOST as error:
            logger.warning("jobs.not_kept", error=type(error).__name__)


async def _open(redis: Redis, consumer: Consumer, entry: Entry) -> Arrival | None:
    """The job in an entry; what is none, or was fatal too often, is buried."""
    try:
        if entry.deliveries > MAX_DELIVERIES:
            raise MalformedMessage("delivered too often")
        job = decode_job(entry.fields.get(b"body", b""))
    except MalformedMessage as error:
        await _bury(redis, consumer, entry, str(error))
        return None
    logger.debug("job.taken", request_id=job.request_id, type=job.type)
    return Arrival(job, entry, consumer)


async def _bury(redis: Redis, consumer: Consumer, entry: Entry, reason: str) -> None:
    """Give up on a job, and tell its client as far as the entry says who that is."""
    logger.warning("job.buried", entry_id=entry.id.decode(), reason=reason)
    metrics.DEAD_LETTERS.inc()
    await consumer.bury(entry, reason, keys.DEAD_LETTERS)
    request_id = entry.fields.get(b"request_id", b"").decode(errors="replace")
    reply_to = entry.fields.get(b"reply_to", b"").decode(errors="replace")
    if request_id and reply_to:
        failed = Failed(
            request_id=RequestId(request_id),
            reason=f"its job was given up: {reason}",
        )
        await post(redis, {keys.replies(reply_to): {"body": encode(failed)}})
