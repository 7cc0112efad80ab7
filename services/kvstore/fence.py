"""Peers that hung up and whose processes may still write to a GPU's memory: until when.

The kernel closes a killed process's socket before the driver has stopped what it left
running on the GPU. Its context ends on the process's own way out, before anybody could
wait for it: so the end of the process is the end of its writes. Knows no block.
"""

import asyncio
import os
import socket
import struct
from collections.abc import Callable
from contextlib import suppress

import structlog

# Where a process cannot be watched. Its last kernels run for milliseconds.
GRACE_SECONDS = 5.0

SO_PEERPIDFD = 77  # Linux 6.5: whoever connected, from whatever PID namespace
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid

logger = structlog.get_logger()


def process_behind(connection: socket.socket) -> int | None:
    """A descriptor of the process that connected; None where it cannot be had."""
    with suppress(OSError):
        return connection.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD)
    credentials = connection.getsockopt(
        socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size
    )
    pid, _, _ = _CREDENTIALS.unpack(credentials)
    with suppress(OSError):
        return os.pidfd_open(pid) if pid else None  # 0: of another namespace
    return None


class Fence:
    """Tells of each peer when it can write no more; until closed."""

    def __init__(
        self, on_end: Callable[[str], None], grace_seconds: float = GRACE_SECONDS
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_end = on_end
        self._grace_seconds = grace_seconds
        self._watched: set[int] = set()
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def watch(self, peer: str, process: int | None) -> None:
        """Call `on_end` once the process has ended; takes its descriptor over."""
        if process is None:
            seconds = self._grace_seconds
            logger.info("peer.not_watched", peer=peer, grace_seconds=seconds)
            self._timers[peer] = self._loop.call_later(seconds, self._outlived, peer)
        else:
            self._watched.add(process)
            self._loop.add_reader(process, self._ended, peer, process)

    def close(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        for process in list(self._watched):
            self._let_go(process)

    def _outlived(self, peer: str) -> None:
        del self._timers[peer]
        self._on_end(peer)

    def _ended(self, peer: str, process: int) -> None:
        self._let_go(process)
        self._on_end(peer)

    def _let_go(self, process: int) -> None:
        self._loop.remove_reader(process)
        self._watched.remove(process)
        os.close(process)
