"""Jobs on their way from a stream into the batch: never more than it can start."""

import asyncio
from dataclasses import dataclass

import structlog
from redis.asyncio import Redis

from mesh import metrics
from mesh.connect import LOST, MAX_BLOCK_SECONDS
from mesh.streams import MAX_DELIVERIES, Consumer, Entry, post
from mesh.timing import pause
from protocol import keys
from protocol.messages import DecodeJob, Failed, PrefillJob, RequestId, decode_job
from protocol.wire import MalformedMessage, encode

RETRY_SECONDS = 0.2

logger = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Arrival:
    """A job, and the entry to acknowledge once the store knows who has it."""

    job: PrefillJob | DecodeJob
    entry: Entry
    consumer: Consumer


class Inbox:
    """Arrivals waiting for the next step, and how many more may come."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._arrivals: list[Arrival] = []
        self._num_running = 0
        self._has_room = asyncio.Event()
        self._has_arrivals = asyncio.Event()
        self._has_room.set()

    def __len__(self) -> int:
        return len(self._arrivals)

    @property
    def num_running(self) -> int:
        """Sequences in the batch, as of its last step."""
        return self._num_running

    @property
    def free_slots(self) -> int:
        return max(0, self._capacity - self._num_running - len(self._arrivals))

    def put(self, arrivals: list[Arrival]) -> None:
        self._arrivals.extend(arrivals)
        self._signal()

    def take(self) -> list[Arrival]:
        """Everything that arrived; its slots are taken until `settle`."""
        arrivals, self._arrivals = self._arrivals, []
        self._num_running += len(arrivals)
        self._signal()
        return arrivals

    def settle(self, num_running: int) -> None:
        """A step is done: that many sequences are in the batch now."""
        self._num_running = num_running
        self._signal()

    async def wait_for_room(self) -> int:
        """How many may come; 0 when there is still no room after a while."""
        await pause(MAX_BLOCK_SECONDS, self._has_room)
        return self.free_slots

    async def wait_for_arrivals(self) -> None:
        """Until something arrived, or a while has passed."""
        await pause(MAX_BLOCK_SECONDS, self._has_arrivals)

    def wake(self) -> None:
        """End both waits now: the worker stops."""
        self._has_room.set()
        self._has_arrivals.set()

    def _signal(self) -> None:
        for event, is_on in (
            (self._has_room, self.free_slots > 0),
            (self._has_arrivals, bool(self._arrivals)),
        ):
            event.set() if is_on else event.clear()


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
            reason="the job could not be understood",
        )
        await post(redis, {keys.replies(reply_to): {"body": encode(failed)}})
