"""Kernels for a worker that serves without any: compiled behind it, then taken up."""

import asyncio
import sys
import time
from collections.abc import Sequence

import structlog

from protocol.messages import InForce
from worker.errand import run_errand
from worker.settings import WorkerSettings
from worker.succession import Succession

COMPILE = sys.executable, "-m", "engine.compile", "--behind"

logger = structlog.get_logger()


class NoKernels(Exception):
    """With the reason: the worker goes on as it is."""


async def take_up_kernels(
    succession: Succession,
    settings: WorkerSettings,
    stopping: asyncio.Event,
    compile_: Sequence[str] = COMPILE,
) -> InForce | None:
    """Have them compiled, and an engine built that uses them, while the first one serves.

    Answers what is in force then, None when told to stop before. Raises NoKernels.
    """
    began = time.monotonic()
    logger.info("kernels.compiling", serving="without them")
    ended = await run_errand(settings, compile_, stopping)
    if stopping.is_set():
        return None
    if ended.code:
        raise NoKernels(f"exit {ended.code}: {ended.last_words}")
    try:
        engine, in_force = await asyncio.to_thread(succession.heir)
    except Exception as error:  # whatever it is, the first engine is none the worse
        raise NoKernels(f"{type(error).__name__}: {error}") from error
    succession.offer(engine)
    logger.info("kernels.in_use", seconds=round(time.monotonic() - began, 1))
    return in_force
