"""A worker as a service: jobs in, steps, tokens out. Its phases are a setting."""

import asyncio
import os
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from typing import Any

import structlog
from redis.asyncio import Redis

from mesh.connect import LOST, connect
from mesh.health import health_server
from mesh.post import Post
from mesh.registry import heartbeat
from mesh.streams import Consumer
from protocol import keys
from protocol.messages import InForce, Phase, WorkerStatus
from protocol.wire import encode
from worker import lease
from worker.batch import Batch
from worker.core import Core
from worker.exchange import Exchange
from worker.in_force import show
from worker.inbox import Inbox, fill, keep
from worker.kernels import NoKernels, take_up_kernels
from worker.publisher import Publisher
from worker.rounds import run
from worker.settings import WorkerSettings
from worker.startup import Stopped, attach, build_engine, preload
from worker.succession import Succession

# The engine's thread must not keep the loop waiting for the interpreter: the default of
# 5 ms is longer than a step of a small model.
SWITCH_SECONDS = 0.0005

logger = structlog.get_logger()


class Worker:
    """One worker process."""

    def __init__(
        self, service: Phase, settings: WorkerSettings, worker_id: str
    ) -> None:
        self._service: Phase = service
        self._settings = settings
        self._worker_id = worker_id
        self._inbox: Inbox | None = None  # once the engine is built
        self._in_force: InForce | None = None  # the same
        self._core: Core | None = None  # the same
        self._ready = asyncio.Event()

    async def serve(self, stopping: asyncio.Event) -> None:
        """Attach to the pool, then compute its jobs until told to stop."""
        sys.setswitchinterval(SWITCH_SECONDS)
        settings = self._settings
        async with (
            connect(settings.redis_url) as redis,
            health_server(settings.health_port, self._ready.is_set, self._facts),
            asyncio.TaskGroup() as tasks,
        ):
            tasks.create_task(
                heartbeat(redis, self.snapshot, settings.lease_seconds, stopping),
                name="heartbeat",
            )
            with suppress(Stopped), ExitStack() as stack:
                await self._work(redis, stack, stopping)

    async def _work(
        self, redis: Redis, stack: ExitStack, stopping: asyncio.Event
    ) -> None:
        """Hold the pool's memory and compute on it."""
        settings = self._settings
        thread = stack.enter_context(ThreadPoolExecutor(1, "engine"))
        thread.submit(preload, settings)
        store, attachment = await attach(settings, self._worker_id, stack, stopping)
        engine, in_force = await asyncio.get_running_loop().run_in_executor(
            thread, build_engine, settings, attachment
        )
        self._runs_on(in_force)
        batch = Batch(settings.step_tokens)
        cores = len(os.sched_getaffinity(0)) if in_force.threads else 0
        phases = frozenset(settings.each_phase)
        core = Core(store, engine, batch, phases, cores)
        self._core = core
        exchange = Exchange()
        self._inbox = inbox = Inbox(settings.max_num_seqs, exchange)
        post = stack.enter_context(closing(Post(settings.redis_url)))
        publisher = Publisher(post, exchange, settings.pool)
        consumers = self._consumers(redis, core.phases)
        for consumer in consumers.values():
            await consumer.join()
        stack.enter_context(lease.held(store, settings.lease_seconds))
        async with asyncio.TaskGroup() as tasks:
            rounds = tasks.create_task(
                run(core, exchange, inbox, publisher, thread), name="rounds"
            )
            # A read of Redis that gets something at that moment loses its cancellation
            # (redis-py waits by wait_for); it looks at `stopping` before the next one.
            rounds.add_done_callback(lambda _: stopping.set())
            if isinstance(engine, Succession):
                following = self._take_up_kernels(engine, stopping)
                tasks.create_task(following, name="kernels")
            self._ready.set()
            words = in_force.in_words()
            logger.info("worker.ready", phases=settings.each_phase, runs_on=words)
            async with asyncio.TaskGroup() as reading:
                for phase, consumer in consumers.items():
                    filling = fill(
                        inbox, redis, consumer, settings.lease_seconds, stopping
                    )
                    reading.create_task(filling, name=f"{phase} jobs")
                keeping = keep(inbox, settings.lease_seconds, stopping)
                reading.create_task(keeping, name="jobs kept")
            exchange.stop()  # nothing comes any more: leave what is there to others
        with suppress(*LOST):  # its name is all that would stay behind
            for consumer in consumers.values():
                await consumer.leave()

    async def _take_up_kernels(
        self, succession: Succession, stopping: asyncio.Event
    ) -> None:
        """What is said of this process is true before, after, and if it never comes."""
        try:
            found = await take_up_kernels(succession, self._settings, stopping)
        except NoKernels as error:
            logger.warning("kernels.missing", reason=str(error))
            same, found = succession.without()
            succession.offer(same)
            found = found.changed(without_replay=f"no kernels: {error}")
        if found:
            self._runs_on(found)

    def _runs_on(self, found: InForce) -> None:
        self._in_force = found
        show(found)

    def _consumers(
        self, redis: Redis, phases: frozenset[Phase]
    ) -> dict[Phase, Consumer]:
        pool, name = self._settings.pool, self._worker_id
        streams: dict[Phase, tuple[str, str]] = {
            "prefill": (keys.prefill(pool), keys.GROUP_OF_PREFILL),
            "decode": (keys.decode(pool), keys.GROUP_OF_DECODE),
        }
        return {phase: Consumer(redis, *streams[phase], name) for phase in phases}

    def _facts(self) -> dict[str, Any]:
        """What `/health` says of this process."""
        return {"in_force": self._in_force.model_dump()} if self._in_force else {}

    def snapshot(self) -> dict[str, bytes]:
        """What the heartbeat says of this process."""
        status = WorkerStatus(
            service=self._service,
            worker_id=self._worker_id,
            pool=self._settings.pool,
            pid=os.getpid(),
            host=socket.gethostname(),
            phases=self._settings.each_phase,
            running=self._inbox.num_running if self._inbox else 0,
            waiting=len(self._inbox) if self._inbox else 0,
            ready=self._ready.is_set(),
            in_force=self._in_force,
            percent=self._core.percent if self._core else 100,
            computes_on=self._core.computes_on if self._core else "",
        )
        return {keys.worker(self._worker_id): encode(status)}
