"""The wire between two stores: every wait has an end, every size a limit."""

import asyncio
import socket
import struct
from collections.abc import Iterator

import pytest

from kv.errors import TransferLost
from kv.operations import Done
from kv.transfer import PIECE_BYTES, Line, Taken, called, decode_done, decode_taken
from protocol.messages import RequestId
from protocol.wire import MalformedMessage

TAKEN = Taken(request_id=RequestId("r1"), attempt=0, generation=3)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a connection."""
    ends = socket.socketpair()
    for end in ends:
        end.setblocking(False)
    yield ends
    for end in ends:
        end.close()


Pair = tuple[socket.socket, socket.socket]


async def test_messages_and_bytes_come_in_order(pair: Pair) -> None:
    """
    What is said is heard, and K/V of any size arrives in the memory that waits for it.
    """
    here, there = map(Line, pair)
    sent = bytes(range(256)) * (PIECE_BYTES // 100)
    got = bytearray(len(sent))

    async def speak() -> None:
        await here.say(TAKEN)
        await here.send(memoryview(sent))
        await here.say(Done())

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(speak(), name="speak")
        heard = await there.hear(decode_taken)
        await there.receive(memoryview(got))
        last = await there.hear(decode_done)

    assert (heard, last) == (TAKEN, Done())
    assert got == sent


async def test_a_cut_message_is_a_lost_transfer(pair: Pair) -> None:
    """
    A store that dies in the middle of a word is gone, not misunderstood.
    """
    here, there = pair
    here.sendall(struct.pack("<I", 100) + b"half")
    here.shutdown(socket.SHUT_WR)

    with pytest.raises(TransferLost, match="closed"):
        await Line(there).hear(decode_taken)


@pytest.mark.parametrize(
    "frame", [struct.pack("<I", 1 << 31), struct.pack("<I", 3) + b"\xc1ab"]
)
async def test_no_frame_of_a_store_is_refused(pair: Pair, frame: bytes) -> None:
    """
    Neither gigabytes of message nor bytes that are none are taken in.
    """
    here, there = pair
    here.sendall(frame)

    with pytest.raises(MalformedMessage):
        await Line(there).hear(decode_taken)


async def test_silence_has_an_end(pair: Pair) -> None:
    """
    A store that hangs holds nobody's blocks for longer than the time of an answer.
    """
    _, there = pair

    with pytest.raises(TransferLost, match="silent"):
        await Line(there, seconds=0.02).receive(memoryview(bytearray(1)))


async def test_who_does_not_read_is_lost_too(pair: Pair) -> None:
    """
    The same for one that takes nothing in.
    """
    here, _ = pair

    with pytest.raises(TransferLost, match="silent"):
        await Line(here, seconds=0.02).send(memoryview(bytes(1 << 23)))


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere.invalid:80", "no address"])
async def test_nobody_at_an_address(address: str) -> None:
    """
    A store that is not there is lost before anything was said.
    """
    with pytest.raises(TransferLost, match="no store at"):
        async with called(address):
            pass
