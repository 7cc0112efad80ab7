"""The store's socket: one connection per worker, one answer per operation."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from itertools import count
from pathlib import Path

import structlog

from kv.frames import framed, read_frame, send_descriptors
from kv.operations import Answer, Attached, RefusedReply, Room, decode_operation
from kvstore.pool import Pool
from mesh.errors import ConfigurationError
from protocol.wire import MalformedMessage, encode

BACKLOG = 128
MODE = 0o660  # the store's user and group: whoever may connect may read every sequence

logger = structlog.get_logger()


@asynccontextmanager
async def serve_pool(
    path: Path, pool: Pool, on_change: Callable[[], None]
) -> AsyncIterator[None]:
    """Answer workers at `path` while the block lasts; `on_change` follows each answer."""
    listener = _listen(path)
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.TaskGroup() as tasks:
            server = _Server(pool, on_change, tasks)
            loop.add_reader(listener, server.accept, listener)
            try:
                yield
            finally:
                loop.remove_reader(listener)
                server.hang_up()
    finally:
        listener.close()
        path.unlink(missing_ok=True)  # noqa: ASYNC240  one file, on the way out


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.setblocking(False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # of a store that was killed
        listener.bind(str(path))
        path.chmod(MODE)
    except OSError as error:
        listener.close()
        raise ConfigurationError(f"cannot listen at {path}: {error.strerror}") from None
    listener.listen(BACKLOG)
    return listener


class _Server:
    def __init__(
        self, pool: Pool, on_change: Callable[[], None], tasks: asyncio.TaskGroup
    ) -> None:
        self._pool = pool
        self._on_change = on_change
        self._tasks = tasks
        self._connections: set[socket.socket] = set()
        self._numbers = count()

    def accept(self, listener: socket.socket) -> None:
        """Somebody knocks. Not a task: a cancelled one could lose a connection."""
        try:
            connection, _ = listener.accept()
        except OSError as error:  # it left again, or there are no descriptors left
            logger.warning("peer.not_accepted", reason=error.strerror)
            return
        connection.setblocking(False)
        # The transport will close its own descriptor; ours only sends and shuts down,
        # and is known from the start, lest a stop overlooks it.
        ours = connection.dup()
        self._connections.add(ours)
        peer = f"peer-{next(self._numbers)}"
        self._tasks.create_task(self._serve(connection, ours, peer), name=peer)

    def hang_up(self) -> None:
        """End every connection: the workers will look for a new store."""
        for connection in self._connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    async def _serve(
        self, connection: socket.socket, ours: socket.socket, peer: str
    ) -> None:
        reader, writer = await asyncio.open_unix_connection(sock=connection)
        # A frame is out before the descriptors that belong to it are sent.
        writer.transport.set_write_buffer_limits(0)
        logger.info("peer.connected", peer=peer)
        try:
            while (body := await read_frame(reader)) is not None:
                answer = self._pool.answer(peer, decode_operation(body))
                writer.write(framed(encode(answer)))
                await writer.drain()
                self._send_memory(ours, answer)
                self._on_change()
        except MalformedMessage as error:
            logger.warning("peer.malformed", peer=peer, reason=str(error))
            writer.write(framed(encode(RefusedReply(reason=str(error)))))
        except ConnectionError:
            pass  # it died while we answered: the same as an end of its frames
        finally:
            self._connections.discard(ours)
            ours.close()
            writer.close()
            self._pool.detach(peer)
            self._on_change()
            logger.info("peer.gone", peer=peer)

    def _send_memory(self, connection: socket.socket, answer: Answer) -> None:
        match answer:
            case Attached():
                send_descriptors(connection, self._pool.memory.descriptors())
            case Room():
                send_descriptors(connection, [self._pool.memory.filling_descriptor()])
