"""The HTTP listener: its socket, its limits, its orderly end. Knows no route."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

from aiohttp import web

from gateway.errors import Overloaded
from gateway.settings import Settings
from mesh.errors import ConfigurationError

BACKLOG = 1024
GOODBYE_SECONDS = 1.5  # for handlers to say their last words


def listening_socket(settings: Settings) -> socket.socket:
    """The inherited socket or a new one; ConfigurationError if the port is taken."""
    try:
        if settings.listen_fd:
            inherited = socket.socket(fileno=settings.listen_fd)
            inherited.setblocking(False)
            return inherited
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        return socket.create_server(
            (settings.host, settings.port), family=family, backlog=BACKLOG
        )
    except OSError as error:
        place = f"{settings.host}:{settings.port}"
        if settings.listen_fd:
            place = f"TANDEM_LISTEN_FD {settings.listen_fd}"
        raise ConfigurationError(f"cannot listen on {place}: {error}") from None


@asynccontextmanager
async def http_server(
    app: web.Application, settings: Settings, listener: socket.socket
) -> AsyncIterator[None]:
    """Serve inside the block; leaving it stops accepting and ends what is open."""
    runner = web.AppRunner(
        app,
        access_log=None,
        handler_cancellation=True,
        keepalive_timeout=settings.keepalive_seconds,
        shutdown_timeout=GOODBYE_SECONDS,
    )
    await runner.setup()
    serve = runner.server
    assert serve is not None, "setup() makes the server"

    def connect() -> asyncio.Protocol:
        is_full = len(serve.connections) >= settings.max_connections
        return _TooManyConnections() if is_full else serve()

    listening = await asyncio.get_running_loop().create_server(
        connect, sock=listener, backlog=BACKLOG
    )
    try:
        yield
    finally:
        listening.close()
        await runner.cleanup()


class _TooManyConnections(asyncio.Protocol):
    """Answers without reading a byte."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast: uvloop's transports are none of asyncio's classes.
        stream = cast(asyncio.WriteTransport, transport)
        body = Overloaded("Too many connections are open.").body()
        head = (
            "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n"
            f"Retry-After: {Overloaded.retry_after_seconds}\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        stream.write(head.encode() + body)
        stream.close()
