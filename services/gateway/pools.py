"""All pools that this gateway sends requests to, as the registry tells of them."""

import asyncio
from collections.abc import Callable, Iterable

import structlog
from redis.asyncio import Redis

from gateway.errors import Unavailable
from gateway.orders import Limits
from gateway.pool import PoolView
from mesh.connect import FAILED
from mesh.registry import living
from mesh.timing import pause
from protocol import keys
from protocol.messages import PoolStatus, WorkerStatus, decode_status
from protocol.wire import MalformedMessage

IMPATIENT_SECONDS = 0.25  # between looks, until a pool is ready

logger = structlog.get_logger()


class Pools:
    """Who could answer a request."""

    def __init__(
        self,
        names: Iterable[str],
        lease_seconds: float,
        on_lost: Callable[[PoolView, str], None],
    ) -> None:
        """`on_lost` hears of a pool, and of its store or that of its handoff pool, whose
        memory is gone."""
        self.views = [PoolView(name, lease_seconds) for name in names]
        self._on_lost = on_lost

    @property
    def is_ready(self) -> bool:
        """Some pool would answer."""
        return any(view.is_ready for view in self.views)

    def known(self) -> list[PoolView]:
        """Those whose limits are known; Unavailable if there are none."""
        known, reasons = list[PoolView](), list[Unavailable]()
        for view in self.views:
            try:
                view.check()
                known.append(view)
            except Unavailable as reason:
                reasons.append(reason)
        if not known:
            raise reasons[0]
        return known

    def limits(self) -> Limits:
        """What fits into some pool."""
        largest = max(ready_first(self.known()), key=lambda view: view.max_tokens)
        return Limits(largest.max_tokens, largest.statuses[0].vocab_size)

    async def watch(
        self, redis: Redis, seconds: float, stopping: asyncio.Event
    ) -> None:
        """Look again and again; survives the loss of Redis."""
        while not stopping.is_set():
            try:
                await self.look(redis)
            except FAILED as error:
                for view in self.views:
                    view.lose_sight()
                logger.warning("pools.not_seen", error=type(error).__name__)
            await pause(seconds if self.is_ready else IMPATIENT_SECONDS, stopping)

    async def look(self, redis: Redis) -> None:
        """Read what everybody says of themselves."""
        bodies = await living(redis, keys.ALL_WORKERS)
        bodies += await living(redis, keys.ALL_POOLS)
        pools, members = dict[str, PoolStatus](), list[WorkerStatus]()
        for body in bodies:
            match _read(body):
                case PoolStatus() as status:
                    pools[status.pool] = status
                case WorkerStatus() as member:
                    members.append(member)
        renewed = [(view, view.see(pools, members)) for view in self.views]
        for view, names in renewed:
            for name in names:
                logger.warning("pool.new_store", pool=name)
                self._on_lost(view, name)
            if view.gone and self.is_ready:
                self._on_lost(view, view.gone)


def ready_first(views: list[PoolView]) -> list[PoolView]:
    """Those that would answer now; if there are none, those that may do so later."""
    return [view for view in views if view.is_ready] or views


def _read(body: bytes) -> WorkerStatus | PoolStatus | None:
    try:
        return decode_status(body)
    except MalformedMessage as error:
        logger.warning("status.malformed", reason=str(error))
        return None
