"""From nothing to an engine on shared memory: attach, load if asked to, build."""

import asyncio
import importlib
import sys
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from device.mps import Mps, look, start_anew
from engine.counting import CountingEngine
from engine.fingerprint import fingerprint
from engine.interface import Engine
from engine.openmp import share_pool
from kv.client import Attachment, StoreClient
from kv.errors import NoRoom, Refused, StoreLost
from kv.operations import Loading, LoadWanted
from kv.segments import Mapping
from mesh.errors import ConfigurationError
from mesh.runtime import EXIT_CONFIGURATION
from mesh.timing import every
from protocol.messages import InForce
from worker import in_force
from worker.errand import run_errand
from worker.settings import WorkerSettings
from worker.succession import Succession
from worker.zero_copy import require

if TYPE_CHECKING:  # they need torch
    from engine.cuda_engine import CudaEngine
    from engine.eager import EagerEngine
    from engine.memory import MappedMemory
    from engine.transformer import TransformerEngine

RETRY_SECONDS = 0.1
COUNTING = "counting"

logger = structlog.get_logger()


class Stopped(Exception):
    """The process was told to stop before it was ready."""


class LoaderFailed(Exception):
    """The loader died without naming a setting: trying again may help."""


def model_fingerprint(settings: WorkerSettings) -> str:
    """What two workers must agree on to share weights and blocks."""
    if settings.engine == COUNTING:
        return COUNTING
    return fingerprint(
        Path(settings.model), settings.dtype, settings.device, settings.quantization
    )


async def attach(
    settings: WorkerSettings, worker_id: str, stack: ExitStack, stopping: asyncio.Event
) -> tuple[StoreClient, Attachment]:
    """Join the pool, whatever it takes: wait for the store, load the weights for it."""
    mine = model_fingerprint(settings)
    store: StoreClient | None = None
    async for _ in every(RETRY_SECONDS, stopping):
        try:
            store = store or stack.enter_context(
                closing(StoreClient(settings.store_socket))
            )
            answer = store.attach(worker_id, mine, settings.each_phase)
        except StoreLost as error:
            logger.debug("store.away", reason=str(error))
            if store is not None:
                store.close()  # a silent store must not go on to count on this one
            store = None
            continue
        except (NoRoom, Refused) as error:
            raise ConfigurationError(str(error)) from None
        match answer:
            case Attachment():
                return store, stack.enter_context(closing(answer))
            case LoadWanted(block_size=block_size):
                await run_loader(settings, block_size, stopping)
            case Loading():
                logger.debug("weights.loading")
    raise Stopped


async def run_loader(
    settings: WorkerSettings, block_size: int, stopping: asyncio.Event
) -> None:
    """Fill the weights from a process of its own, whose memory ends with it."""
    logger.info("weights.wanted", model=settings.model)
    argv = sys.executable, "-m", "worker.load", str(block_size)
    code, reason = await run_errand(settings, argv, stopping)
    if code == EXIT_CONFIGURATION:
        raise ConfigurationError(reason)
    if code != 0 and not stopping.is_set():
        raise LoaderFailed(f"exit {code}: {reason}")


def preload(settings: WorkerSettings) -> None:
    """Import what the engine needs, while the weights are still on their way."""
    if settings.engine == COUNTING:
        return
    if settings.device == "cuda":
        importlib.import_module("engine.cuda_engine")
    else:
        share_pool()
        importlib.import_module("engine.eager")


def build_engine(
    settings: WorkerSettings, attachment: Attachment
) -> tuple[Engine, InForce]:
    """The engine over the pool's memory, warm, and what it runs on.

    A `Succession` where kernels are still to be compiled.
    """
    if settings.engine == COUNTING:
        counting = CountingEngine(attachment.facts.vocab_size)
        return counting, in_force.of_counting(settings)
    # torch takes seconds to import: only who computes pays for it.
    from engine.memory import MappedMemory

    memory = MappedMemory(
        attachment.weights.view,
        attachment.tensors,
        attachment.blocks.view,
        attachment.geometry,
    )
    if settings.quantization != "none":
        # Of the logits' norm, against the weights as they were.
        error = round(attachment.facts.quantization_error, 4)
        logger.info("weights.quantized", to=settings.quantization, logits_error=error)
    if not isinstance(attachment.blocks, Mapping):
        on_gpu = _on_gpu(settings, memory, attachment.max_model_len)
        return _checked(settings, attachment, *on_gpu)
    attachment.blocks.populate()
    return _on_cpu(settings, attachment, memory, attachment.blocks.fd)


def _checked(
    settings: WorkerSettings,
    attachment: Attachment,
    engine: "TransformerEngine | CudaEngine",
    found: InForce,
) -> tuple[Engine, InForce]:
    if settings.require_zero_copy:
        require(settings, attachment, engine.places, found)
    return engine, found


def _on_cpu(
    settings: WorkerSettings,
    attachment: Attachment,
    memory: "MappedMemory",
    shared_fd: int,
) -> tuple[Engine, InForce]:
    from engine.compiled import are_compiled
    from engine.cores import Cores
    from engine.eager import EagerEngine
    from engine.transformer import TransformerEngine

    path, threads = Path(settings.model), settings.threads
    if are_compiled():
        private = _private_bytes(settings)
        engine = TransformerEngine.build(path, memory, threads, private)
        _tell_of_copies(engine)
    else:
        engine = EagerEngine(path, memory, threads)
    engine.warm_up()
    engine.compete(Cores(shared_fd))
    found = in_force.on_cpu(settings, engine)
    answer = _checked(settings, attachment, engine, found)
    if isinstance(engine, EagerEngine):
        heir = partial(_with_kernels, settings, attachment, engine)
        without = partial(_without_kernels, settings, engine)
        return Succession(engine, heir, without), found
    return answer


def _with_kernels(
    settings: WorkerSettings, attachment: Attachment, engine: "EagerEngine"
) -> tuple[Engine, InForce]:
    """The engine that follows one that serves without kernels."""
    heir = engine.with_kernels(attachment.facts, _private_bytes(settings))
    _tell_of_copies(heir)
    return _checked(settings, attachment, heir, in_force.on_cpu(settings, heir))


def _without_kernels(
    settings: WorkerSettings, engine: "EagerEngine"
) -> tuple[Engine, InForce]:
    """The same one, when nobody compiles any more."""
    engine.alone()
    return engine, in_force.on_cpu(settings, engine)


def _private_bytes(settings: WorkerSettings) -> int:
    """At most so many of weights may be laid out anew."""
    computes_prompts = settings.phases != "decode" and not settings.require_zero_copy
    return settings.max_private_bytes if computes_prompts else 0


def _tell_of_copies(engine: "TransformerEngine") -> None:
    if engine.private_bytes:
        logger.info("weights.laid_out", num_bytes=engine.private_bytes)


def why_whole(settings: WorkerSettings, mps: Mps) -> str:
    """Why no part of the GPU is taken; empty where one is."""
    if not settings.asks_for_split:
        return "no split is asked for"
    if settings.phases == "both":
        return "a worker of both phases has the whole"
    if not mps.is_reachable:
        # A part would only be slower.
        return f"phases take turns without MPS: {mps.reason}"
    return ""


def fixed_percent(
    settings: WorkerSettings, mps: Mps, why_whole: str, why_undivided: str
) -> int:
    """What MPS is to give this worker of a GPU that cannot be divided; 0: nothing new.

    It cannot change while a process runs, and counts also where it computes alone.
    """
    is_new = bool(why_undivided) and not mps.percent
    if why_whole or not is_new or not settings.shares:
        return 0
    return settings.shares if settings.phases == "prefill" else 100 - settings.shares


def _on_gpu(
    settings: WorkerSettings, memory: "MappedMemory", max_model_len: int
) -> "tuple[CudaEngine, InForce]":
    from engine.cuda_engine import CudaEngine, Limits
    from engine.partition import Lanes

    decodes = settings.phases != "prefill"
    mps = look()  # a client of it since the memory was mapped
    reason = why_whole(settings, mps)
    lanes = Lanes.open(
        "decode" if decodes else "prefill", [] if reason else settings.splits
    )
    if percent := fixed_percent(settings, mps, reason, lanes.reason):
        logger.warning("gpu.fixed_percent", percent=percent, reason=lanes.reason)
        start_anew(percent)
    reason = reason or lanes.reason
    log = logger.warning if settings.asks_for_split and reason else logger.info
    log(
        "gpu.shares",
        mode=lanes.mode,
        sizes={str(index): size for index, size in lanes.sizes.items()},
        reason=reason,
        mps=mps.reason or "reachable",
        mps_percent=mps.percent,
    )
    prefills = settings.phases != "decode"
    limits = Limits(settings.max_num_seqs, max_model_len, decodes, prefills)
    engine = CudaEngine.build(Path(settings.model), memory, limits, lanes)
    if engine.without_graphs:
        logger.warning("gpu.without_graphs", reason=engine.without_graphs)
    engine.warm_up()
    return engine, in_force.on_gpu(settings, engine, lanes, reason, mps)
