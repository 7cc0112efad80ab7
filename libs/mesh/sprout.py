"""A process that a stem forks, seen by who asked for it (see `mesh.stem`)."""

import asyncio
import json
import os
import signal
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from mesh.errors import Unreachable
from mesh.settings import PREFIX

ANSWER_BYTES = 64
BACKLOG = 128
STEM_SECONDS = 120.0  # what it imports takes a few, or tens on a slow disk


class Process(Protocol):
    """One that runs: asyncio's, or a sprout."""

    @property
    def pid(self) -> int: ...

    async def wait(self) -> int: ...

    def terminate(self) -> None: ...

    def kill(self) -> None: ...


class Sprout:
    """A process that lives as long as our connection to its stem, at most."""

    def __init__(self, line: socket.socket, pid: int) -> None:
        self.pid = pid
        self._line = line
        self._loop = asyncio.get_running_loop()
        self._code: asyncio.Future[int] = self._loop.create_future()
        self._loop.add_reader(line, self._on_end)

    async def wait(self) -> int:
        """Its exit code, or minus a signal."""
        return await asyncio.shield(self._code)

    def terminate(self) -> None:
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        if self._code.done():
            raise ProcessLookupError
        os.kill(self.pid, number)

    def _on_end(self) -> None:
        self._loop.remove_reader(self._line)
        code = b""
        with self._line, suppress(OSError):
            code = self._line.recv(ANSWER_BYTES)
        # A stem that died takes its forks with it.
        self._code.set_result(int(code) if code else -signal.SIGKILL)


async def sprout(
    stem: Path,
    argv: Sequence[str],
    env: Mapping[str, str],
    outputs: tuple[int, int],
    seconds: float = STEM_SECONDS,
) -> Sprout:
    """Have `python ... -m MODULE ...` forked, with these settings and stdout and stderr.

    Of the environment only settings are its own; the rest is the stem's. Waits until
    there is a stem that has imported what it has to: Unreachable if that takes longer
    than `seconds`, OSError where none is asked.
    """
    settings = {name: env[name] for name in env if name.startswith(PREFIX)}
    request = json.dumps({"argv": list(argv), "settings": settings}).encode()
    try:
        async with asyncio.timeout(seconds):
            return await _forked(stem, request, outputs)
    except (TimeoutError, BlockingIOError):  # or so many have asked that none more may
        silent = f"no stem answered at {stem} in {seconds:g} s"
        raise Unreachable(silent) from None


async def _forked(stem: Path, request: bytes, outputs: tuple[int, int]) -> Sprout:
    while True:
        line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            line.setblocking(False)
            line.connect(str(stem))
            socket.send_fds(line, [request], outputs)
            if answer := await _answer(line):
                return Sprout(line, int(answer))
        except BaseException:
            line.close()
            raise
        line.close()


async def _answer(line: socket.socket) -> bytes:
    """Empty when the stem died before it forked: there will be another one."""
    with suppress(ConnectionResetError):
        return await asyncio.get_running_loop().sock_recv(line, ANSWER_BYTES)
    return b""


def stem_socket(path: Path) -> socket.socket:
    """Where a stem is asked: it listens before there is one, and while none is."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(path))
    listener.listen(BACKLOG)
    return listener
