"""What two stores say to each other when the K/V of a sequence moves from one to the other.

    receiver ── Fetch ──> source      from that block on
    receiver <── Sending, K/V ──      block after block, as they lie in memory
    receiver ── Taken ──> source      recorded there: the source may forget it
    receiver <── Done ──

Messages are frames as on a store's socket; K/V follows `Sending` as plain bytes, whose
number both ends know. One connection moves one sequence, and is the source's hold on it.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Annotated, Literal, TypeVar

from pydantic import Field

from kv.errors import TransferLost
from kv.frames import HEADER, framed
from kv.operations import Done, Gone, RefusedReply
from protocol.memory import KVGeometry
from protocol.messages import RequestId
from protocol.wire import Decoder, MalformedMessage, Message, encode

ANSWER_SECONDS = 10.0  # without a byte: the other store is lost
MAX_MESSAGE_BYTES = 1 << 20  # the geometry of a thousand layers is a tenth of it
PIECE_BYTES = 1 << 18  # copied in one turn of the loop, which workers wait for

M = TypeVar("M")
T = TypeVar("T")


class Fetch(Message):
    """Send me the K/V of this sequence, if nobody took it since that generation."""

    type: Literal["fetch"] = "fetch"
    request_id: RequestId
    attempt: int  # with each one the sequence may begin anew, and its generations
    generation: int
    fingerprint: str  # of the model; with the geometry: whether its K/V can be mine
    geometry: KVGeometry
    first_block: int = Field(ge=0)  # those before it are here


class Taken(Message):
    """This sequence is here now, or has ended: forget it."""

    type: Literal["taken"] = "taken"
    request_id: RequestId
    attempt: int
    generation: int


class Sending(Message):
    """So many blocks follow."""

    type: Literal["sending"] = "sending"
    num_blocks: int = Field(ge=0)


decode_wish: Decoder[Fetch | Taken] = Decoder(
    Annotated[Fetch | Taken, Field(discriminator="type")]
)
decode_taken: Decoder[Taken] = Decoder(Taken)
decode_answer: Decoder[Sending | Gone | RefusedReply] = Decoder(
    Annotated[Sending | Gone | RefusedReply, Field(discriminator="type")]
)
decode_done: Decoder[Done] = Decoder(Done)


class Line:
    """One end of a connection between two stores; TransferLost when the other is gone."""

    def __init__(
        self, connection: socket.socket, seconds: float = ANSWER_SECONDS
    ) -> None:
        """`connection` does not block; each read or write has so many seconds."""
        self._loop = asyncio.get_running_loop()
        self._connection = connection
        self._seconds = seconds

    async def say(self, message: Message) -> None:
        body = encode(message)
        await self._in_time(self._loop.sock_sendall(self._connection, framed(body)))

    async def hear(self, decode: Decoder[M]) -> M:
        """The next message; MalformedMessage if it is none of the expected."""
        header = bytearray(HEADER.size)
        await self.receive(memoryview(header))
        (size,) = HEADER.unpack(header)
        if size > MAX_MESSAGE_BYTES:
            raise MalformedMessage(f"a message of {size} bytes")
        body = bytearray(size)
        await self.receive(memoryview(body))
        return decode(bytes(body))

    async def send(self, view: memoryview) -> None:
        """All of these bytes, piece by piece."""
        for start in range(0, len(view), PIECE_BYTES):
            piece = view[start : start + PIECE_BYTES]
            await self._in_time(self._loop.sock_sendall(self._connection, piece))

    async def receive(self, view: memoryview) -> None:
        """Fill the view."""
        filled = 0
        while filled < len(view):
            piece = view[filled : filled + PIECE_BYTES]
            reading = self._loop.sock_recv_into(self._connection, piece)
            size = await self._in_time(reading)
            if not size:
                raise TransferLost("the other store closed the connection")
            filled += size

    async def _in_time(self, waiting: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(self._seconds):
                return await waiting
        except TimeoutError:
            raise TransferLost(f"silent for {self._seconds:g} s") from None
        except OSError as error:
            raise TransferLost(error.strerror or str(error)) from None


@asynccontextmanager
async def called(address: str, seconds: float = ANSWER_SECONDS) -> AsyncIterator[Line]:
    """A line to the store at host:port; TransferLost if nobody answers there."""
    host, _, port = address.rpartition(":")
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(seconds):
            ((family, kind, protocol, _, place), *_) = await loop.getaddrinfo(
                host.strip("[]"), int(port), type=socket.SOCK_STREAM
            )
            connection = socket.socket(family, kind, protocol)
    except (OSError, ValueError) as error:
        raise TransferLost(f"no store at {address}: {error}") from None
    with connection:
        connection.setblocking(False)
        try:
            async with asyncio.timeout(seconds):
                await loop.sock_connect(connection, place)
        except OSError as error:  # a TimeoutError is one
            raise TransferLost(f"no store at {address}: {error}") from None
        yield Line(connection, seconds)
