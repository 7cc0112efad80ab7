"""How every service starts and stops. Knows nothing of what a service does."""

import asyncio
import os
import secrets
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import NoReturn

import structlog
import uvloop

from mesh import log
from mesh.errors import ConfigurationError, MeshError, Unreachable
from mesh.settings import S, load

EXIT_UNREACHABLE = 1
EXIT_CONFIGURATION = 2  # a restart with the same settings would fail the same way

logger = structlog.get_logger()

Serve = Callable[[S, str, asyncio.Event], Awaitable[None]]


def run(service: str, serve: Serve[S], settings_kind: type[S]) -> NoReturn:
    """Run `serve(settings, worker_id, stopping)` until it ends or a signal asks it to.

    A wrong setting is one line on stderr and exit code 2.
    """
    worker_id = f"{service}-{secrets.token_hex(4)}"
    code = 0
    try:
        settings = load(settings_kind)
        log.set_up(
            service, worker_id, level=settings.log_level, style=settings.log_format
        )
        uvloop.run(_until_signal(serve, settings, worker_id))
    except* ConfigurationError as group:
        print(f"{service}: {_first(group)}", file=sys.stderr)
        code = EXIT_CONFIGURATION
    except* Unreachable as group:
        logger.error("service.failed", reason=str(_first(group)))
        code = EXIT_UNREACHABLE
    sys.stdout.flush()
    sys.stderr.flush()
    # Everything is given back by now, and torch takes a second or two to take itself
    # apart: seconds in which nobody else starts.
    os._exit(code)


async def _until_signal(serve: Serve[S], settings: S, worker_id: str) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    logger.info("service.starting", pool=settings.pool)
    await serve(settings, worker_id, stopping)
    logger.info("service.stopped")


def _first(group: BaseExceptionGroup[MeshError]) -> BaseException:
    """The first real error of a group of groups."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
