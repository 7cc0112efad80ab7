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
from gateway.generation import Requests
from gateway.handlers import Handlers
from gateway.latencies import Meter
from gateway.live_page import add_page_route, load_page
from gateway.model import Model, load_model
from gateway.outbox import Outbox
from gateway.pool import PoolView
from gateway.pools import Pools
from gateway.replies import Replies
from gateway.router import Router
from gateway.server import http_server, listening_socket
from gateway.settings import Settings
from gateway.steering import Steered, Steering
from mesh.connect import FAILED, connect
from mesh.health import add_health_routes
from mesh.leader import Leadership
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
    """One gateway process, between its clients and its pools."""

    def __init__(
        self, settings: Settings, worker_id: str, redis: Redis, model: Model
    ) -> None:
        self._settings = settings
        self._worker_id = worker_id
        self._redis = redis
        goals = settings.goals
        meters = {
            name: Meter(goals.ttft_seconds, goals.tpot_seconds)
            for name in settings.pool_names
        }
        self.admission = Admission(settings.max_open_requests)
        self.replies = Replies()
        self.outbox = Outbox(redis)
        self.mailbox = Mailbox(redis, worker_id, keys.replies, MAILBOX_LEASE_SECONDS)
        self.pools = Pools(settings.pool_names, settings.lease_seconds, self._on_lost)
        self.requests = Requests(
            model,
            self.outbox,
            self.replies,
            self.mailbox,
            self.pools,
            Router(),
            settings.request_timeout_seconds,
            meters,
        )

    async def run(self, listener: socket.socket, stopping: asyncio.Event) -> None:
        settings = self._settings
        async with asyncio.TaskGroup() as tasks:
            reading = tasks.create_task(
                self.replies.read(self.mailbox, self.requests.resubmit_all, stopping),
                name="replies",
            )
            tasks.create_task(self._watch_pools(stopping), name="pools")
            if settings.steers:
                for view in self.pools.views:
                    steering = self._steering(view)
                    tasks.create_task(steering.run(stopping), name="steering")
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

    async def _watch_pools(self, stopping: asyncio.Event) -> None:
        # No request is taken before a pool is known, hence none without a mailbox.
        while not (self.replies.can_hear.is_set() or stopping.is_set()):
            await pause(LOOK_SECONDS, self.replies.can_hear)
        seconds = self._settings.lease_seconds / BEATS_PER_LEASE
        await self.pools.watch(self._redis, seconds, stopping)

    def _on_lost(self, view: PoolView, pool: str) -> None:
        self.requests.resubmit_lost(view, pool)

    async def _answer(self, listener: socket.socket, stopping: asyncio.Event) -> None:
        async with http_server(self._application(), self._settings, listener):
            await stopping.wait()
            self.admission.close()
            self.replies.fail_all(Unavailable("The server is stopping."))

    def _application(self) -> web.Application:
        app = edge_application(self._settings.max_body_bytes)
        add_health_routes(app, lambda: self.pools.is_ready)
        handlers = Handlers(self._settings, self.requests, self.pools, self.admission)
        handlers.add_routes(app)
        Admin(self._redis, self.pools, self._settings).add_routes(app)
        add_page_route(app, load_page())
        return app

    def _steering(self, view: PoolView) -> Steering:
        settings = self._settings
        return Steering(
            self._redis,
            Steered(view, self.requests.meters[view.name]),
            Leadership(
                self._redis,
                keys.steering(view.name),
                self._worker_id,
                settings.lease_seconds,
            ),
            settings.goals,
            settings.control_window_seconds,
        )

    def _snapshot(self) -> dict[str, bytes]:
        status = WorkerStatus(
            service="gateway",
            worker_id=self._worker_id,
            pool=self._settings.pool,
            pid=os.getpid(),
            host=socket.gethostname(),
            running=self.admission.num_open,
            ready=self.pools.is_ready,
        )
        return {keys.worker(self._worker_id): encode(status)}
