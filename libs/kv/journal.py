"""Steps that a worker writes down and waits for no answer to, and the call to ask again.

Two ends of a socket that keeps messages apart, and keeps them when their writer has died.
The store reads them when it next has to know, so a step in which nothing changes hands
wakes nobody.

Each end looks only after it has spoken: the worker writes a step, then looks whether it
is called; the store calls, then reads. So a step that the store does not find, because it
has given the sequence to somebody else, is one that the worker tells nobody of before it
has asked.
"""

import select
import socket
from collections.abc import Iterator, Sequence
from contextlib import suppress

import msgpack

from kv.operations import Progress
from protocol.wire import Decoder

MAX_ENTRY_BYTES = 1 << 16  # less than such a socket holds: more is an error there
CALL = b"?"

_decode: Decoder[tuple[Progress, ...]] = Decoder(tuple[Progress, ...])


class Journal:
    """The worker's end."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._socket.setblocking(False)
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)

    def close(self) -> None:
        self._socket.close()

    def write(self, steps: Sequence[Progress]) -> bool:
        """False if there is no room; OSError if nobody will read it any more."""
        entry = msgpack.packb(steps)
        if len(entry) > MAX_ENTRY_BYTES:
            return False
        try:
            self._socket.send(entry)
        except BlockingIOError:
            return False
        return True

    def is_called(self) -> bool:
        """Whether the store wants to be asked, once for all its calls until now."""
        if not self._poll.poll(0):
            return False
        with suppress(BlockingIOError):
            while self._socket.recv(len(CALL)):
                pass
        return True


class JournalReader:
    """The store's end, and until it is closed the other one's descriptor."""

    def __init__(self) -> None:
        self._socket, self._far = socket.socketpair(
            socket.AF_UNIX, socket.SOCK_SEQPACKET
        )
        self._socket.setblocking(False)

    @property
    def descriptor(self) -> int:
        """To be sent to the worker."""
        return self._far.fileno()

    def close(self) -> None:
        self._socket.close()
        self._far.close()

    def call(self) -> None:
        """The worker is to ask before it tells anybody of its next step."""
        with suppress(BlockingIOError):  # it has not looked at so many calls
            self._socket.send(CALL)

    def read(self) -> Iterator[tuple[Progress, ...]]:
        """What was written since the last time; MalformedMessage for anything else."""
        with suppress(BlockingIOError):
            while entry := self._socket.recv(MAX_ENTRY_BYTES):
                yield _decode(entry)
