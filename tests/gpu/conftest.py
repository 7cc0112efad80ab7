"""Engines on a real GPU, over memory that the tests own."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from small_models import BLOCK_SIZE, NUM_BLOCKS

from engine.checkpoint import Checkpoint
from engine.memory import MappedMemory
from protocol.memory import DType

MAX_NUM_SEQS = 8


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without a GPU all of this folder is skipped, and says why."""
    here = Path(__file__).parent
    absent = pytest.mark.skip(reason="no CUDA device")
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(absent)


@dataclass
class DeviceMemory:
    """What a store would hold of one model: weights, and blocks of 64 x 16 tokens."""

    path: Path
    checkpoint: Checkpoint

    def __post_init__(self) -> None:
        self.weights = torch.empty(
            self.checkpoint.weights_bytes, dtype=torch.uint8, device="cuda"
        )
        self.checkpoint.copy_into(self.weights)
        size = NUM_BLOCKS * self.checkpoint.geometry.block_bytes
        # All ones is NaN in both dtypes: whoever reads an unwritten slot, shows it.
        self.blocks = torch.full((size,), 255, dtype=torch.uint8, device="cuda")

    def mapped(self) -> MappedMemory:
        geometry = self.checkpoint.geometry
        return MappedMemory(
            self.weights, self.checkpoint.tensors, self.blocks, geometry
        )


@pytest.fixture
def device_memory() -> Callable[..., DeviceMemory]:
    """Load a model as the loader does, into memory of the test's own."""

    def read(path: Path, dtype: DType = "float32") -> DeviceMemory:
        return DeviceMemory(path, Checkpoint.read(path, dtype, BLOCK_SIZE, "cuda"))

    return read
