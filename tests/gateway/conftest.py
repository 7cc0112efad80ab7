"""A real gateway on a real Redis and a real socket, in front of a fake pool."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from fake_pool import FakePool
from redis.asyncio import Redis
from waiting import wait_until

from gateway.app import Gateway
from gateway.model import Model, load_model
from gateway.server import listening_socket
from gateway.settings import Settings

STORIES = Path(__file__).parents[2] / "models" / "stories260K"

Serve = Callable[..., Awaitable[aiohttp.ClientSession]]


@pytest.fixture(scope="session")
def stories() -> Path:
    """The directory of the small real model."""
    return STORIES


@pytest.fixture(scope="session")
def model(stories: Path) -> Model:
    """The small real model, seen from the gateway."""
    return load_model(Settings(model=str(stories)))


@pytest.fixture
async def pool(redis: Redis) -> AsyncIterator[FakePool]:
    """A pool that answers."""
    fake = FakePool(redis)
    await fake.announce()
    running = asyncio.create_task(fake.run(), name="fake-pool")
    yield fake
    fake.stopping.set()
    running.cancel()  # it may be waiting for a job
    with suppress(asyncio.CancelledError):
        await running


@dataclass
class Running:
    """A gateway that was started."""

    port: int
    stopping: asyncio.Event
    task: asyncio.Task[None]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def stop(self) -> None:
        self.stopping.set()
        async with asyncio.timeout(5):
            await self.task


@pytest.fixture
def started() -> list[Running]:
    """The gateways that this test has started, the latest at the end."""
    return []


@pytest.fixture
async def serve(
    redis: Redis, redis_url: str, model: Model, started: list[Running]
) -> AsyncIterator[Serve]:
    """Starts gateways with given settings; returns a client of each."""
    async with AsyncExitStack() as stack:

        async def start(
            *, is_ready: bool = True, served: Model = model, **given: Any
        ) -> aiohttp.ClientSession:
            settings = Settings(redis_url=redis_url, **{"port": 0, **given})
            gateway = Gateway(settings, "gateway-1", redis, served)
            listener = listening_socket(settings)
            port, stopping = listener.getsockname()[1], asyncio.Event()
            task = asyncio.create_task(gateway.run(listener, stopping), name="gateway")
            started.append(Running(port, stopping, task))
            stack.push_async_callback(started[-1].stop)
            if is_ready:
                await wait_until(lambda: gateway.pools.is_ready)
            session = aiohttp.ClientSession(started[-1].url)
            return await stack.enter_async_context(session)

        yield start


@pytest.fixture
async def client(serve: Serve, pool: FakePool) -> aiohttp.ClientSession:
    """A client of a gateway whose pool is ready."""
    return await serve()
