"""Cuts a connection of other processes, both of which go on living."""

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

PIDFD_GETFD = 438  # the system call, which Python has no function for
CLOSED = errno.ENOENT, errno.EBADF  # since the descriptors were listed
PEER = struct.Struct("3i")  # process, user, group

_libc = ctypes.CDLL(None, use_errno=True)


def cut(server: int, path: Path, client: int) -> None:
    """Shut down what `client` has open at the server's socket."""
    for connection in _sockets(server):
        with closing(connection):
            if _is_from(connection, path, client):
                connection.shutdown(socket.SHUT_RDWR)


def _sockets(pid: int) -> Iterator[socket.socket]:
    """Our own descriptors of all sockets that a process has open."""
    process = os.pidfd_open(pid)
    try:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            try:
                if not os.readlink(entry).startswith("socket:"):
                    continue
                copy = _copied(process, int(entry.name))
            except OSError as error:
                if error.errno in CLOSED:
                    continue
                raise
            yield socket.socket(fileno=copy)
    finally:
        os.close(process)


def _copied(process: int, descriptor: int) -> int:
    copy = _libc.syscall(PIDFD_GETFD, process, descriptor, 0)
    if copy < 0:
        raise OSError(ctypes.get_errno(), "pidfd_getfd")
    return int(copy)


def _is_from(connection: socket.socket, path: Path, client: int) -> bool:
    if connection.family != socket.AF_UNIX or connection.getsockname() != str(path):
        return False
    if connection.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return False  # it is who listens
    peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER.size)
    return bool(PEER.unpack(peer)[0] == client)
