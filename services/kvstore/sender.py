"""The source's end of a transfer: gives K/V of parked sequences to the stores that ask.

While a sequence is sent its connection owns it, so its blocks stay as they are. Once the
receiver has recorded it they are released, into the prefix cache; if the connection ends
before that, the sequence is parked and announced again.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from itertools import count

import structlog

from kv.errors import TransferLost
from kv.operations import Done, Gone, Held, Record, RefusedReply
from kv.transfer import Fetch, Line, Sending, Taken, decode_taken, decode_wish
from kvstore.pool import Pool
from kvstore.store import Store
from mesh.errors import ConfigurationError
from protocol.wire import MalformedMessage

MAX_TRANSFERS = 64  # at a time; others wait to be accepted
RETRY_SECONDS = 0.2

logger = structlog.get_logger()


class Sender:
    """Answers the stores of other pools."""

    def __init__(self, pool: Pool, on_change: Callable[[], None]) -> None:
        self._pool = pool
        self._on_change = on_change
        self._slots = asyncio.Semaphore(MAX_TRANSFERS)
        self._numbers = count()

    async def serve(self, listener: socket.socket) -> None:
        """Accept until cancelled, which ends every conversation."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as tasks:
            while True:
                await self._slots.acquire()
                try:
                    connection, _ = await loop.sock_accept(listener)
                except OSError as error:  # it left again, or no descriptors are left
                    logger.warning("transfer.not_accepted", reason=error.strerror)
                    self._slots.release()
                    await asyncio.sleep(RETRY_SECONDS)
                    continue
                connection.setblocking(False)
                name = f"sender-{next(self._numbers)}"
                tasks.create_task(self._answer(connection, name), name=name)

    async def _answer(self, connection: socket.socket, name: str) -> None:
        try:
            with closing(connection):
                await self._converse(Line(connection), name)
        except TransferLost as error:
            logger.warning("transfer.lost", peer=name, reason=str(error))
        except MalformedMessage as error:
            logger.warning("transfer.malformed", peer=name, reason=str(error))
        finally:
            self._slots.release()
            self._on_change()

    async def _converse(self, line: Line, name: str) -> None:
        wish = await line.hear(decode_wish)
        store = self._pool.store
        if store is None:
            await line.say(Gone())
            return
        with store.carrying(name):
            match wish:
                case Taken():
                    store.lend(wish.request_id, wish.attempt, wish.generation, name)
                    await self._forget(line, store, wish, name)
                case Fetch():
                    await self._send(line, store, wish, name)

    async def _send(self, line: Line, store: Store, wish: Fetch, name: str) -> None:
        if reason := self._pool.memory.difference(wish.fingerprint, wish.geometry):
            await line.say(RefusedReply(reason=reason))
            return
        record = store.lend(wish.request_id, wish.attempt, wish.generation, name)
        if not isinstance(record, Record):
            await line.say(Gone())
            return
        blocks = self._blocks_to_send(store, record)[wish.first_block :]
        await line.say(Sending(num_blocks=len(blocks)))
        for block in blocks:
            await line.send(self._pool.memory.block(block))
        await self._forget(line, store, await line.hear(decode_taken), name)

    def _blocks_to_send(self, store: Store, record: Record) -> list[int]:
        """Those with K/V; one that its owner has still to copy is sent from there."""
        copied = {target: source for source, target in record.copies}
        num_blocks = store.geometry.num_blocks(record.num_computed_tokens)
        return [copied.get(block, block) for block in record.block_table[:num_blocks]]

    async def _forget(self, line: Line, store: Store, wish: Taken, name: str) -> None:
        # Adopted here, so one generation later than the receiver knows.
        held = Held(wish.request_id, wish.generation + 1)
        store.forget([held], name)
        self._on_change()
        await line.say(Done())


@asynccontextmanager
async def sending(
    listener: socket.socket, pool: Pool, on_change: Callable[[], None]
) -> AsyncIterator[None]:
    """Other stores are answered while the block lasts."""
    async with asyncio.TaskGroup() as tasks:
        serving = Sender(pool, on_change).serve(listener)
        task = tasks.create_task(serving, name="transfers")
        try:
            yield
        finally:
            task.cancel()


def transfer_listener(host: str, port: int) -> socket.socket:
    """Where other stores find this one; ConfigurationError when it cannot be there."""
    try:
        ((family, _, _, _, place), *_) = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        listener = socket.create_server(place, family=family, backlog=MAX_TRANSFERS)
    except OSError as error:
        raise ConfigurationError(
            f"TANDEM_TRANSFER_HOST {host}:{port}: {error.strerror}"
        ) from None
    listener.setblocking(False)
    return listener
