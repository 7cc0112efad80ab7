"""What the gateway knows of its pool: the model's limits, and who is alive."""

import asyncio
import time
from collections.abc import Callable

import structlog
from redis.asyncio import Redis

from gateway.errors import Unavailable
from mesh.connect import FAILED
from mesh.registry import living
from mesh.timing import pause
from protocol import keys
from protocol.messages import PoolStatus, WorkerStatus, decode_status
from protocol.wire import MalformedMessage

PHASES = {"prefill", "decode"}
IMPATIENT_SECONDS = 0.25  # between looks, until the pool is ready

# A store that died is back within this time, and its requests wait for it.
GRACE_SECONDS = 30.0

logger = structlog.get_logger()


class PoolView:
    """The pool as its members last described themselves."""

    def __init__(self, name: str, on_new_store: Callable[[], None]) -> None:
        """`on_new_store` is called when the store is another one than before."""
        self._name = name
        self._on_new_store = on_new_store
        self._status: PoolStatus | None = None
        self._seen_at = 0.0
        self.members: list[WorkerStatus] = []  # who lives
        self.is_ready = False

    def status(self) -> PoolStatus:
        """The pool's limits; Unavailable while there is no pool."""
        if self._status is None:
            raise Unavailable("The model is still being loaded.")
        if time.monotonic() - self._seen_at > GRACE_SECONDS:
            raise Unavailable("The model's pool is gone.")
        return self._status

    async def watch(
        self, redis: Redis, seconds: float, stopping: asyncio.Event
    ) -> None:
        """Look again and again; survives the loss of Redis."""
        while not stopping.is_set():
            try:
                await self.look(redis)
            except FAILED as error:
                self.is_ready = False
                logger.warning("pool.not_seen", error=type(error).__name__)
            await pause(seconds if self.is_ready else IMPATIENT_SECONDS, stopping)

    async def look(self, redis: Redis) -> None:
        """Read what every member of the pool says of itself."""
        members = await living(redis, keys.ALL_WORKERS)
        stores = await living(redis, keys.ALL_POOLS)
        is_known, phases, alive = False, set[str](), list[WorkerStatus]()
        for body in members + stores:
            match _read(body):
                case PoolStatus(pool=self._name) as status:
                    self._see(status)
                    is_known = True
                case WorkerStatus(pool=self._name) as member:
                    alive.append(member)
                    phases.update(member.phases if member.ready else ())
        self.members = alive
        self.is_ready = is_known and phases >= PHASES

    def _see(self, status: PoolStatus) -> None:
        before = self._status
        self._status, self._seen_at = status, time.monotonic()
        if before is not None and before.store != status.store:
            logger.warning("pool.new_store", before=before.store, now=status.store)
            self._on_new_store()


def _read(body: bytes) -> WorkerStatus | PoolStatus | None:
    try:
        return decode_status(body)
    except MalformedMessage as error:
        logger.warning("status.malformed", reason=str(error))
        return None
