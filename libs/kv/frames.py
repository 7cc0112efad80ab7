"""Frames of the store's connection: four bytes of length, then one message.

File descriptors travel beside one marker byte, sent right after the frame that
announces them: the receiver never reads past a frame, so it cannot lose them.
"""

import socket
import struct
from collections.abc import Iterator, Sequence

from kv.errors import StoreLost
from protocol.wire import MalformedMessage

HEADER = struct.Struct("<I")
MAX_FRAME_BYTES = 64 << 20  # a manifest of 100,000 tensors is a tenth of it
MARKER = b"F"


def framed(body: bytes) -> bytes:
    return HEADER.pack(len(body)) + body


def taken(received: bytearray) -> Iterator[bytes]:
    """The bodies of the whole frames at the beginning, removed from there one by one."""
    while len(received) >= HEADER.size:
        (size,) = HEADER.unpack_from(received)
        if size > MAX_FRAME_BYTES:
            raise MalformedMessage(f"a frame of {size} bytes")
        end = HEADER.size + size
        if len(received) < end:
            return
        body = bytes(received[HEADER.size : end])
        del received[:end]
        yield body


def receive_frame(connection: socket.socket) -> bytes:
    """The next frame's body from a blocking socket; StoreLost at its end."""
    (size,) = HEADER.unpack(_receive_exactly(connection, HEADER.size))
    return _receive_exactly(connection, size)


def _receive_exactly(connection: socket.socket, size: int) -> bytes:
    received = connection.recv(size, socket.MSG_WAITALL)
    while len(received) < size:  # a signal or the timeout's poll cut the wait short
        more = connection.recv(size - len(received), socket.MSG_WAITALL)
        if not more:
            raise StoreLost("the store closed the connection")
        received += more
    return received


def send_descriptors(connection: socket.socket, descriptors: Sequence[int]) -> None:
    socket.send_fds(connection, [MARKER], list(descriptors))


def receive_descriptors(connection: socket.socket, count: int) -> list[int]:
    marker, descriptors, _, _ = socket.recv_fds(connection, len(MARKER), count)
    if marker != MARKER or len(descriptors) != count:
        raise StoreLost("the store sent no memory")
    return descriptors
