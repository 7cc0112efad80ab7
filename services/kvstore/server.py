"""The store's socket: one connection per worker, one answer per operation.

Straight on the socket: an answer leaves in the same turn of the loop in which its question
came, and a worker's step waits for nothing else.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from itertools import count
from pathlib import Path

import structlog

from kv.frames import framed, send_descriptors, taken
from kv.operations import Answer, Attached, RefusedReply, Room, decode_operation
from kvstore.fence import Fence, process_behind
from kvstore.pool import Pool
from mesh.errors import ConfigurationError
from protocol.wire import MalformedMessage, encode

BACKLOG = 128
MODE = 0o660  # the store's user and group: whoever may connect may read every sequence
READ_BYTES = 1 << 18

logger = structlog.get_logger()


@asynccontextmanager
async def serve_pool(
    path: Path, pool: Pool, on_change: Callable[[], None]
) -> AsyncIterator[None]:
    """Answer workers at `path` while the block lasts; `on_change` follows each answer."""
    listener = _listen(path)
    loop = asyncio.get_running_loop()

    def on_end(peer: str) -> None:
        pool.detach(peer)
        on_change()
        logger.info("peer.ended", peer=peer)

    fence = Fence(on_end)
    try:
        async with asyncio.TaskGroup() as tasks:
            server = _Server(pool, on_change, tasks, fence)
            loop.add_reader(listener, server.accept, listener)
            try:
                yield
            finally:
                loop.remove_reader(listener)
                server.hang_up()
    finally:
        fence.close()
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
        self,
        pool: Pool,
        on_change: Callable[[], None],
        tasks: asyncio.TaskGroup,
        fence: Fence,
    ) -> None:
        self._pool = pool
        self._on_change = on_change
        self._fence = fence
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
        self._connections.add(connection)  # from the start, lest a stop overlooks it
        name = f"peer-{next(self._numbers)}"
        self._tasks.create_task(self._serve(connection, name), name=name)

    def hang_up(self) -> None:
        """End every connection: the workers will look for a new store."""
        for connection in self._connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    async def _serve(self, connection: socket.socket, name: str) -> None:
        logger.info("peer.connected", peer=name)
        peer = _Peer(connection, name, self._pool, self._on_change)
        try:
            with peer:
                await peer.ended
        except MalformedMessage as error:
            logger.warning("peer.malformed", peer=name, reason=str(error))
        finally:
            self._connections.discard(connection)
            connection.close()
            if peer.writes_late:
                self._pool.fence(name)
                self._fence.watch(name, peer.process)
            else:
                self._pool.detach(name)
            self._on_change()
            logger.info("peer.gone", peer=name)


class _Peer:
    """One connection: answers what comes, as it comes, while the block lasts."""

    def __init__(
        self,
        connection: socket.socket,
        name: str,
        pool: Pool,
        on_change: Callable[[], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._connection = connection
        self._name = name
        self._pool = pool
        self._on_change = on_change
        self._received = bytearray()
        self._unsent = b""
        self._descriptors: list[int] = []  # to follow what is unsent
        self.ended = self._loop.create_future()  # or what went wrong
        self.writes_late = False  # even when its connection is gone
        self.process: int | None = None  # a descriptor of it, if it is to be watched

    def __enter__(self) -> "_Peer":
        self._loop.add_reader(self._connection, self._guarded, self._read)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.remove_reader(self._connection)
        self._loop.remove_writer(self._connection)

    def _guarded(self, act: Callable[[], None]) -> None:
        if self.ended.done():
            return  # what it still asks came too late
        try:
            act()
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:  # it died while we answered: the same as an end of its frames
            self._end()
        except MalformedMessage as error:
            with suppress(OSError):
                self._say(RefusedReply(reason=str(error)))
            self._end(error)
        except Exception as error:  # the store's own: the whole process must end
            self._end(error)

    def _end(self, error: Exception | None = None) -> None:
        if self.ended.done():
            return
        if error:
            self.ended.set_exception(error)
        else:
            self.ended.set_result(None)

    def _read(self) -> None:
        if data := self._connection.recv(READ_BYTES):
            self._received += data
            self._answer_all()
        else:
            self._end()

    def _answer_all(self) -> None:
        for body in taken(self._received):
            self._say(self._pool.answer(self._name, decode_operation(body)))
            self._on_change()
            if self._is_behind:
                return  # it asks faster than it reads: the rest can wait

    def _say(self, answer: Answer) -> None:
        self._unsent += framed(encode(answer))
        if isinstance(answer, Attached | Room):
            self._descriptors += self._pool.memory.descriptors()
        if isinstance(answer, Attached):
            self._descriptors.append(self._pool.journals.open(self._name))
        if isinstance(answer, Attached) and answer.blocks.sharing != "memfd":
            self.writes_late = True
            self.process = self.process or process_behind(self._connection)
        self._send()
        if self._is_behind:
            self._loop.remove_reader(self._connection)
            self._loop.add_writer(self._connection, self._guarded, self._go_on)

    def _go_on(self) -> None:
        """It has read some of a long answer."""
        self._send()
        if self._is_behind:
            return
        self._loop.remove_writer(self._connection)
        self._loop.add_reader(self._connection, self._guarded, self._read)
        self._answer_all()

    @property
    def _is_behind(self) -> bool:
        return bool(self._unsent or self._descriptors)

    def _send(self) -> None:
        with suppress(BlockingIOError, InterruptedError):
            self._unsent = self._unsent[self._connection.send(self._unsent) :]
            if self._descriptors and not self._unsent:
                send_descriptors(self._connection, self._descriptors)
                self._descriptors = []
