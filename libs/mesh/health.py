"""/live, /ready (or /health) and /metrics of a service, the same small application everywhere."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

Facts = Callable[[], Mapping[str, Any]]


def add_health_routes(
    app: web.Application, is_ready: Callable[[], bool], facts: Facts = dict
) -> None:
    """`/live`: the process runs. `/ready`, which peers call `/health`: it would do its
    work; the answer has the service's `facts`, too.
    """

    async def live(_: web.Request) -> web.Response:
        return web.json_response({"status": "live"})

    async def ready(_: web.Request) -> web.Response:
        if is_ready():
            return web.json_response({"status": "ready", **facts()})
        return web.json_response({"status": "starting"}, status=503)

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(
            body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    app.router.add_get("/live", live)
    app.router.add_get("/ready", ready)
    app.router.add_get("/health", ready)
    app.router.add_get("/metrics", metrics)


@asynccontextmanager
async def health_server(
    port: int, is_ready: Callable[[], bool], facts: Facts = dict
) -> AsyncIterator[None]:
    """Serve the health routes on a port of their own; port 0 means nobody asks."""
    if port == 0:
        yield
        return
    app = web.Application()
    add_health_routes(app, is_ready, facts)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, port=port).start()
        yield
    finally:
        await runner.cleanup()
