"""What the loader puts into a pool, as its settings say."""

import asyncio
from pathlib import Path

import pytest
from small_models import save_model

from engine.packing import is_ours
from kvstore.memory import PoolMemory
from kvstore.pool import Pool
from kvstore.server import serve_pool
from worker.load import load_checkpoint
from worker.settings import WorkerSettings

# Rows of weights that are worth compressing.
WIDE = {"hidden_size": 256, "intermediate_size": 384, "initializer_range": 0.05}


@pytest.mark.skipif(not is_ours(), reason="another library multiplies here")
@pytest.mark.parametrize("compression", [True, False])
async def test_weights_are_compressed_where_that_is_wanted(
    tmp_path: Path, compression: bool
) -> None:
    """
    `TANDEM_COMPRESSION=false` comes as far as the pool's segment: who asks for plain weights,
    to look at them from another program for instance, finds them as the checkpoint has them.
    """
    path = save_model(tmp_path / "model", "LlamaConfig", **WIDE)
    settings = WorkerSettings(
        model=str(path),
        dtype="bfloat16",
        store_socket=tmp_path / "s",
        compression=compression,
    )
    memory = PoolMemory(10, block_size=16, max_model_len=0)

    async with serve_pool(tmp_path / "s", Pool("p", memory, 10), lambda: None):
        await asyncio.to_thread(load_checkpoint, settings, 16)

    assert memory.load is not None
    compressed = [t.name for t in memory.load.tensors if t.name.endswith("weight_rows")]
    assert bool(compressed) == compression
