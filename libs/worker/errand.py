"""A process that a worker starts to have something done, and that ends before it does."""

import asyncio
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from tempfile import TemporaryFile
from typing import NamedTuple

from mesh.errors import Unreachable
from mesh.parentage import die_with_parent
from mesh.runtime import EXIT_UNREACHABLE
from mesh.sprout import Process, sprout
from mesh.timing import pause
from worker.settings import WorkerSettings


class Ended(NamedTuple):
    code: int  # or minus a signal
    last_words: str  # the last line on stderr


async def run_errand(
    settings: WorkerSettings,
    argv: Sequence[str],
    stopping: asyncio.Event,
) -> Ended:
    """Run it to its end, or kill it when it takes too long or the worker is to stop.

    `argv` is `python -m MODULE ...`. With a stem it is a fork of that.
    """
    with TemporaryFile() as said:
        try:
            process = await _start(settings, argv, said.fileno())
        except Unreachable as error:
            return Ended(EXIT_UNREACHABLE, str(error))
        async with asyncio.TaskGroup() as tasks:
            limit = tasks.create_task(
                _end(process, settings.load_timeout_seconds, stopping), name="limit"
            )
            code = await process.wait()
            limit.cancel()
        said.seek(0)
        lines = said.read().decode(errors="replace").strip().splitlines()
    return Ended(code, lines[-1] if lines else "no reason given")


async def _start(settings: WorkerSettings, argv: Sequence[str], stderr: int) -> Process:
    """In a session of its own, that dies with this process."""
    if settings.stem_socket:
        outputs = sys.stdout.fileno(), stderr
        return await sprout(settings.stem_socket, argv, os.environ, outputs)
    return await asyncio.create_subprocess_exec(
        *argv,
        stderr=stderr,
        start_new_session=True,
        preexec_fn=partial(die_with_parent, os.getpid()),
    )


async def _end(process: Process, seconds: float, stopping: asyncio.Event) -> None:
    await pause(seconds, stopping)
    with suppress(ProcessLookupError):  # it ended just now
        process.kill()
