"""The gateway's parts and the order in which they start and stop."""

import asyncio
import os
import socket
from contextlib import suppress

from aiohttp import web
from redis.asyncio import Redis

from gateway.admin import Admin
from gateway.admission import Admission
from gateway.edge import edge_application
from gateway.errors import Unavailable
from gateway.generation import Pool
from gateway.handlers import Handlers
from gateway.model import Model, load_model
from gateway.outbox import Outbox
from gateway.pool import PoolView
from gateway.replies import Replies
from gateway.server import http_server, listening_socket
from gateway.settings import Settings
from mesh.connect import FAILED, connect
from mesh.health import add_health_routes
from mesh.registry import BEATS_PER_LEASE, heartbeat
from mesh.streams import Mailbox
from mesh.timing import pause
from protocol import keys
from protocol.messages import WorkerStatus
from protocol.wire import encode

MAILBOX_LEASE_SECONDS = 10.0
LOOK_SECONDS = 0.2


async def serve(settings: Settings, worker_id: str, stopping: asyncio.Event) -> None:
    """Answer HTTP until told to stop."""
    with listening_socket(settings) as listener:
        model = await asyncio.to_thread(load_model, settings)
        async with connect(settings.redis_url) as redis:
            gateway = Gateway(settings, worker_id, redis, model)
            await gateway.run(listener, stopping)


class Gateway:
    """One gateway process, between its clients and its pool."""

    def __init__(
        self, settings: Settings, worker_id: str, redis: Redis, model: Model
    ) -> None:
        self._settings = settings
        self._worker_id = worker_id
        self._redis = redis
        self.admission = Admission(settings.max_open_requests)
        self.replies = Replies()
        self.outbox = Outbox(redis, settings.pool)
        self.mailbox = Mailbox(redis, worker_id, keys.replies, MAILBOX_LEASE_SECONDS)
        self.pool = Pool(
            model,
            self.outbox,
            self.replies,
            self.mailbox,
            settings.request_timeout_seconds,
        )
        self.view = PoolView(settings.pool, self.pool.resubmit_all)

    async def run(self, listener: socket.socket, stopping: asyncio.Event) -> None:
        settings = self._settings
        async with asyncio.TaskGroup() as tasks:
            reading = tasks.create_task(
                self.replies.read(self.mailbox, self.pool.resubmit_all, stopping),
                name="replies",
            )
            tasks.create_task(self._watch_pool(stopping), name="pool")
            tasks.create_task(self.outbox.deliver(), name="outbox")
            tasks.create_task(
                heartbeat(
                    self._redis, self._snapshot, settings.lease_seconds, stopping
                ),
                name="heartbeat",
            )
            await self._answer(listener, stopping)
            self.outbox.close()
            reading.cancel()
        with suppress(*FAILED):
            await self.mailbox.close()

    async def _watch_pool(self, stopping: asyncio.Event) -> None:
        # No request is taken before the pool is known, hence none without a mailbox.
        while not (self.replies.can_hear.is_set() or stopping.is_set()):
            await pause(LOOK_SECONDS, self.replies.can_hear)
        seconds = self._settings.lease_seconds / BEATS_PER_LEASE
        await self.view.watch(self._redis, seconds, stopping)

    async def _answer(self, listener: socket.socket, stopping: asyncio.Event) -> None:
        async with http_server(self._application(), self._settings, listener):
            await stopping.wait()
            self.admission.close()
            self.replies.fail_all(Unavailable("The server is stopping."))

    def _application(self) -> web.Application:
        app = edge_application(self._settings.max_body_bytes)
        add_health_routes(app, lambda: self.view.is_ready)
        Handlers(self._settings, self.pool, self.view, self.admission).add_routes(app)
        Admin(self._redis, self._settings.pool, self.view).add_routes(app)
        return app

    def _snapshot(self) -> dict[str, bytes]:
        status = WorkerStatus(
            service="gateway",
            worker_id=self._worker_id,
            pool=self._settings.pool,
            pid=os.getpid(),
            host=socket.gethostname(),
            running=self.admission.num_open,
            ready=self.view.is_ready,
        )
        return {keys.worker(self._worker_id): encode(status)}
