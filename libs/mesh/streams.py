"""Redis streams: who takes which entry, and what becomes of it. Not what it means.

An entry that a consumer took, neither acknowledged nor kept, goes to another consumer
once it was idle for a lease; delivered too often, it is buried as a dead letter.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from mesh.connect import MAX_BLOCK_SECONDS
from mesh.line import Line

MAX_DEAD_LETTERS = 10_000
MAX_DELIVERIES = 3
MAX_LETTERS = 100_000  # steps that a gateway may lag behind before it misses some

Fields = Mapping[Any, Any]  # names and values, str or bytes


@dataclass(frozen=True, slots=True)
class Entry:
    """One element of a stream."""

    id: bytes
    fields: Mapping[bytes, bytes]
    deliveries: int = 1


def _entries(reply: Any) -> list[Entry]:
    # redis-py types a reply as the union of all its historical shapes.
    return [Entry(id, fields) for _, rows in reply for id, fields in rows]


async def send(redis: Redis, stream: str, fields: Fields, max_len: int = 0) -> None:
    """Append an entry; with `max_len` the oldest ones beyond about that many go."""
    await redis.xadd(stream, dict(fields), maxlen=max_len or None)


async def newest(redis: Redis, stream: str, count: int) -> list[Entry]:
    """The latest entries, the newest first."""
    return _entries([(stream, await redis.xrevrange(stream, count=count))])


@dataclass(frozen=True, slots=True)
class Letter:
    """An entry on its way to a stream."""

    stream: str
    fields: Fields
    max_len: int = 0  # the stream's oldest entries beyond about that many go; 0: none


async def send_all(redis: Redis, letters: Iterable[Letter]) -> None:
    """Append entries to any streams, in this order and in one round trip."""
    async with redis.pipeline(transaction=False) as pipeline:
        for letter in letters:
            pipeline.xadd(
                letter.stream, dict(letter.fields), maxlen=letter.max_len or None
            )
        await pipeline.execute()


async def post(redis: Redis, letters: Mapping[str, Fields]) -> set[str]:
    """Append one entry to each mailbox; returns those whose reader is gone."""
    gone: set[str] = set()
    # One by one: a step's tokens mostly go to one gateway, and a pipeline costs more
    # than it saves below three or four.
    for stream, fields in letters.items():
        entry_id = await redis.xadd(
            stream, dict(fields), maxlen=MAX_LETTERS, nomkstream=True
        )
        if entry_id is None:
            gone.add(stream)
    return gone


class Consumer:
    """One reader in the consumer group of one stream."""

    def __init__(self, redis: Redis, stream: str, group: str, name: str) -> None:
        self._redis = redis
        self._stream = stream
        self._group = group
        self._name = name

    async def join(self) -> None:
        """Make stream and group if they are missing; all entries count, old ones too."""
        try:
            await self._redis.xgroup_create(
                self._stream, self._group, id="0", mkstream=True
            )
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise

    async def take(self, count: int, block_seconds: float) -> list[Entry]:
        """Up to `count` new entries; waits for the first at most `block_seconds`."""
        try:
            reply = await self._redis.xreadgroup(
                self._group,
                self._name,
                {self._stream: ">"},
                count=count,
                block=int(min(block_seconds, MAX_BLOCK_SECONDS) * 1000),
            )
        except ResponseError as error:
            if "NOGROUP" not in str(error):
                raise
            await self.join()  # Redis came back without its data
            return []
        return _entries(reply)

    async def take_over(self, count: int, idle_seconds: float) -> list[Entry]:
        """Up to `count` entries whose consumer let them lie for `idle_seconds`."""
        try:
            _, rows, *_ = await self._redis.xautoclaim(
                self._stream,
                self._group,
                self._name,
                min_idle_time=int(idle_seconds * 1000),
                count=count,
            )
        except ResponseError as error:
            if "NOGROUP" not in str(error):
                raise
            return []
        return [
            Entry(id, fields, await self._deliveries(id))
            for id, fields in rows
            if fields
        ]

    async def keep(self, entries: Iterable[Entry]) -> None:
        """They are in good hands: nobody takes them over for another lease."""
        ids: list[Any] = [entry.id for entry in entries]
        try:
            await self._redis.xclaim(
                self._stream,
                self._group,
                self._name,
                min_idle_time=0,
                message_ids=ids,
                justid=True,  # no delivery
            )
        except ResponseError as error:
            if "NOGROUP" not in str(error):
                raise

    async def _deliveries(self, entry_id: bytes) -> int:
        pending = await self._redis.xpending_range(
            self._stream, self._group, min=entry_id, max=entry_id, count=1
        )
        return int(pending[0]["times_delivered"]) if pending else 1

    async def acknowledge(self, entries: Iterable[Entry]) -> None:
        """These are done: no other consumer will see them, and they leave the stream."""
        ids = [entry.id for entry in entries]
        if not ids:
            return
        async with self._redis.pipeline(transaction=True) as transaction:
            transaction.xack(self._stream, self._group, *ids)
            transaction.xdel(self._stream, *ids)
            await transaction.execute()

    async def bury(self, entry: Entry, reason: str, dead_letters: str) -> None:
        """Give up on an entry: keep it with the reason where people look."""
        letter: dict[Any, Any] = {
            **entry.fields,
            "stream": self._stream,
            "reason": reason,
            "deliveries": entry.deliveries,
        }
        await self._redis.xadd(dead_letters, letter, maxlen=MAX_DEAD_LETTERS)
        await self.acknowledge([entry])

    async def leave(self) -> None:
        """Drop this consumer from its group, unless entries still wait in its name."""
        pending = await self._redis.xpending_range(
            self._stream,
            self._group,
            min="-",
            max="+",
            count=1,
            consumername=self._name,
        )
        if not pending:
            await self._redis.xgroup_delconsumer(self._stream, self._group, self._name)


class Tail:
    """Reads a stream from a point on, for itself alone."""

    def __init__(self, redis: Redis, stream: str, after: bytes = b"$") -> None:
        """`after` the entry of that id; "$" is the newest one there is at first."""
        self._redis = redis
        self._line = Line(redis)
        self._stream = stream
        self._last = after

    async def read(self, count: int) -> list[Entry]:
        """Entries not read before; waits for the first at most a second."""
        if self._last == b"$":
            self._last = await self._newest()
        block = "BLOCK", int(MAX_BLOCK_SECONDS * 1000)
        reply = await self._line.ask(
            "XREAD", "COUNT", count, *block, "STREAMS", self._stream, self._last
        )
        entries = [
            Entry(id, dict(zip(fields[::2], fields[1::2], strict=True)))
            for _, rows in reply or ()
            for id, fields in rows
        ]
        if entries:
            self._last = entries[-1].id
        return entries

    def begin_anew(self, stream: str) -> None:
        """Go on with another stream, from its beginning."""
        self._stream, self._last = stream, b"0"

    async def trim(self) -> None:
        """Drop from the stream what was read."""
        if self._last not in (b"0", b"$"):
            await self._redis.xtrim(self._stream, minid=self._last.decode())

    async def _newest(self) -> bytes:
        # Asked once: a "$" sent with each read would miss what comes between two.
        rows = await self._redis.xrevrange(self._stream, count=1)
        return cast(bytes, rows[0][0]) if rows else b"0"


class Mailbox:
    """A stream with one reader and many writers, which lives as long as its reader.

    When Redis lost it, it opens again under another name: what was posted to the old
    one is lost, and writers who still have that name find nobody there.
    """

    def __init__(
        self,
        redis: Redis,
        name: str,
        key_of: Callable[[str], str],
        lease_seconds: float,
    ) -> None:
        self.name = name
        self._redis = redis
        self._first_name = name
        self._key_of = key_of
        self._lease_ms = int(lease_seconds * 1000)
        self._num_opened = 0
        self._tail = Tail(redis, self._key, after=b"0")

    @property
    def _key(self) -> str:
        return self._key_of(self.name)

    async def open(self) -> None:
        """Make the stream exist: writers refuse to write to one that does not."""
        await self._redis.xadd(self._key, {"opened": b""})
        await self._redis.pexpire(self._key, self._lease_ms)
        self._num_opened += 1

    async def read(self, count: int) -> list[Entry]:
        """Entries not read before; waits for the first at most a second."""
        return await self._tail.read(count)

    async def renew(self) -> bool:
        """Keep the stream for another lease, without what was read; False if it was
        lost, and has another name now."""
        if await self._redis.pexpire(self._key, self._lease_ms):
            await self._tail.trim()
            return True
        is_first = self._num_opened == 0
        if not is_first:
            self.name = f"{self._first_name}.{self._num_opened}"
            self._tail.begin_anew(self._key)
        await self.open()
        return is_first

    async def close(self) -> None:
        await self._redis.delete(self._key)
