"""The store as a service: its socket, its announcements, its cancels, its heartbeat."""

import asyncio
import os
import socket
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, ExitStack

import structlog
from redis.asyncio import Redis

from kv.cuda import segment_maker
from kv.errors import NoRoom
from kv.segments import HostSegment, SegmentMaker
from kvstore.announcer import Announcer
from kvstore.handoff import check_handoff, transport_of
from kvstore.memory import PoolMemory
from kvstore.pool import Pool
from kvstore.receiver import Receiver
from kvstore.sender import sending
from kvstore.server import serve_pool
from kvstore.settings import Settings
from mesh import metrics
from mesh.connect import LOST, connect
from mesh.errors import ConfigurationError
from mesh.health import health_server
from mesh.registry import heartbeat
from mesh.state import kept
from mesh.streams import Tail
from mesh.timing import every, pause
from protocol import keys
from protocol.messages import (
    Cancel,
    ForgetShares,
    Shares,
    SteeredShares,
    WorkerStatus,
    decode_control,
    decode_shares,
)
from protocol.wire import MalformedMessage, encode

ORDERS_AT_ONCE = 1000
RETRY_SECONDS = 0.2
LOOKS_PER_LEASE = 8
LATE_SECONDS = 5.0  # between looks for what nobody waits for any more
LOOKS_PER_REMINDER = 6

logger = structlog.get_logger()


async def serve(settings: Settings, worker_id: str, stopping: asyncio.Event) -> None:
    check_handoff(settings)
    pool = pool_of(settings)
    news = asyncio.Event()
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(connect(settings.redis_url))
        await stack.enter_async_context(
            health_server(
                settings.health_port,
                lambda: pool.store is not None,
                lambda: facts(pool),
            )
        )
        sockets = stack.enter_context(ExitStack())
        transport, listener = transport_of(settings, worker_id, sockets)
        announcer = Announcer(redis, pool, transport)

        def on_change() -> None:
            news.set()
            if pool.has_announcements or stopping.is_set():
                announcer.wake()

        await stack.enter_async_context(
            serve_pool(settings.store_socket, pool, on_change)
        )
        if listener is not None:
            await stack.enter_async_context(sending(listener, pool, on_change))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(announcer.run(stopping), name="announcer")
            tasks.create_task(
                watch_leases(pool, settings.lease_seconds, on_change, stopping),
                name="leases",
            )
            if settings.check_seconds:
                tasks.create_task(
                    check_always(pool, settings.check_seconds, stopping), name="checks"
                )
            tasks.create_task(look_after(pool, on_change, stopping), name="parked")
            tasks.create_task(
                heartbeat(
                    redis,
                    lambda: snapshot(pool, worker_id),
                    settings.lease_seconds,
                    stopping,
                    news,
                ),
                name="heartbeat",
            )
            reading = [
                tasks.create_task(
                    obey(redis, pool, on_change, stopping), name="control"
                )
            ]
            if settings.device == "cpu":
                receiver = Receiver(redis, pool, announcer, worker_id)
                reading.append(
                    tasks.create_task(receiver.run(stopping), name="transfer jobs")
                )
            await stopping.wait()
            on_change()
            for task in reading:
                task.cancel()  # it may be in the middle of a blocking read


def pool_of(settings: Settings) -> Pool:
    """Without a model yet; ConfigurationError when its memory cannot be had."""
    memory = PoolMemory(
        settings.kv_blocks,
        settings.block_size,
        settings.max_model_len,
        segment_maker_of(settings),
    )
    return Pool(
        settings.pool,
        memory,
        settings.max_waiting,
        settings.handoff_pool,
        settings.first_shares,
    )


async def look_after(
    pool: Pool, on_change: Callable[[], None], stopping: asyncio.Event
) -> None:
    """Nothing that is parked for another pool is forgotten, nor kept for too long."""
    reminding = 0
    async for _ in every(LATE_SECONDS, stopping):
        if pool.store is None:
            continue
        pool.store.drop_late(time.time())
        reminding = (reminding + 1) % LOOKS_PER_REMINDER
        if pool.handoff_pool and not reminding:
            pool.store.remind()
        on_change()


def segment_maker_of(settings: Settings) -> SegmentMaker:
    """Makes memory where it was asked for; ConfigurationError when there is none."""
    if settings.device == "cpu":
        return HostSegment
    try:
        make = segment_maker(settings.cuda_sharing)
        if settings.require_zero_copy:
            make("trial", 1).close()
        return make
    except NoRoom as error:
        raise ConfigurationError(f"TANDEM_DEVICE is cuda, but {error}") from None


async def watch_leases(
    pool: Pool,
    lease_seconds: float,
    on_change: Callable[[], None],
    stopping: asyncio.Event,
) -> None:
    """Others go on with what a worker held that hangs, connected as it is."""
    loop = asyncio.get_running_loop()
    due = loop.time()
    async for _ in every(lease_seconds / LOOKS_PER_LEASE, stopping):
        late = loop.time() - due
        due = loop.time() + lease_seconds / LOOKS_PER_LEASE
        if late > lease_seconds / LOOKS_PER_LEASE:
            pool.forgive(late)  # its renewals may lie unread in our sockets
        for peer in pool.expire(lease_seconds):
            logger.warning("peer.silent", peer=peer, seconds=lease_seconds)
            on_change()


async def check_always(pool: Pool, seconds: float, stopping: asyncio.Event) -> None:
    """A store that counted wrong ends with an AssertionError, rather than go on."""
    async for _ in every(seconds, stopping):
        if pool.store is not None:
            pool.store.check()


async def obey(
    redis: Redis,
    pool: Pool,
    on_change: Callable[[], None],
    stopping: asyncio.Event,
) -> None:
    """Do what the pool's control stream says, from now on."""
    control = Tail(redis, keys.control(pool.name))
    knows_shares = False
    while not stopping.is_set():
        try:
            entries = await control.read(ORDERS_AT_ONCE)
            if not knows_shares:  # of before; what comes from here on is in the stream
                recall_shares(pool, await kept(redis, keys.shares(pool.name)))
                knows_shares = True
        except LOST as error:
            logger.warning("control.lost", error=type(error).__name__)
            await pause(RETRY_SECONDS, stopping)
            continue
        for entry in entries:
            try:
                order = decode_control(entry.fields.get(b"body", b""))
            except MalformedMessage as error:
                logger.warning("control.malformed", reason=str(error))
                continue
            match order:
                case Cancel(request_id=request_id):
                    # Who waited for blocks gets what it frees.
                    pool.cancel(request_id)
                case Shares():
                    pool.division.change(order)
                case SteeredShares(shares=shares):
                    pool.division.steer(shares)
                case ForgetShares():
                    pool.division.change(None)
            on_change()


def facts(pool: Pool) -> dict[str, str]:
    """What `/health` says of the store."""
    if pool.store is None:
        return {}
    division = pool.division
    return {
        "sharing": pool.memory.sharing,
        "shares": str(division.shares),
        "shares_by": division.shares_by,
    }


def recall_shares(pool: Pool, body: bytes | None) -> None:
    """Go on with the shares that a store of before was told."""
    if body is None:
        return
    try:
        pool.division.change(decode_shares(body))
    except MalformedMessage as error:
        logger.warning("shares.malformed", reason=str(error))


def snapshot(pool: Pool, worker_id: str) -> dict[str, bytes]:
    """What the heartbeat says of this process and its pool."""
    status = pool.status()
    process = WorkerStatus(
        service="kvstore",
        worker_id=worker_id,
        pool=pool.name,
        pid=os.getpid(),
        host=socket.gethostname(),
        waiting=status.num_waiting if status else 0,
        ready=status is not None,
    )
    values = {keys.worker(worker_id): encode(process)}
    if status is not None:
        metrics.MEMORY_SHARING.labels(status.sharing).set(1)
        metrics.NUM_REQUESTS_WAITING.set(status.num_waiting)
        metrics.KV_CACHE_USAGE.set(status.referenced / status.total)
        for state in ("free", "cached", "referenced", "quarantined"):
            metrics.KV_BLOCKS.labels(state).set(getattr(status, state))
        values[keys.pool(pool.name)] = encode(status.changed(store=worker_id))
    return values
