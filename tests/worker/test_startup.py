"""How a worker comes to a pool's memory, or says why it cannot."""

import asyncio
from contextlib import ExitStack
from pathlib import Path

import pytest
from jobs import FACTS, LOAD

from kv.segments import HostSegment
from kvstore.memory import PoolMemory
from kvstore.pool import Pool
from kvstore.server import serve_pool
from mesh.errors import ConfigurationError
from protocol.memory import SegmentHandle
from worker.settings import WorkerSettings
from worker.startup import COUNTING, attach


class LentByGPU(HostSegment):
    """Says of itself that it lies in a GPU's memory."""

    @property
    def handle(self) -> SegmentHandle:
        return SegmentHandle(sharing="vmm", size_bytes=self.size_bytes)


async def test_a_worker_that_cannot_map_the_memory_says_why(tmp_path: Path) -> None:
    """
    A GPU's memory, and no GPU here: one line and no restart, rather than a trace.
    """
    memory = PoolMemory(10, block_size=4, max_model_len=0, make_segment=LentByGPU)
    load = LOAD.changed(facts=FACTS.changed(fingerprint=COUNTING))
    memory.begin_load("loader", load)
    memory.commit_load("loader")
    settings = WorkerSettings(engine="counting", store_socket=tmp_path / "s")

    def join() -> None:
        with ExitStack() as stack:
            asyncio.run(attach(settings, "w", stack, asyncio.Event()))

    async with serve_pool(tmp_path / "s", Pool("p", memory, 10), lambda: None):
        with pytest.raises(
            ConfigurationError, match=r"cuda-bindings|CUDA driver|cuMem"
        ):
            await asyncio.to_thread(join)
