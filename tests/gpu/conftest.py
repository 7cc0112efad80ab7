"""Engines on a real GPU, over memory that the tests own."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from gpu_memory import DeviceMemory
from small_models import BLOCK_SIZE

from engine.checkpoint import Checkpoint
from protocol.memory import DType


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without a GPU all of this folder is skipped, and says why."""
    here = Path(__file__).parent
    absent = pytest.mark.skip(reason="no CUDA device")
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(absent)


@pytest.fixture
def device_memory() -> Callable[..., DeviceMemory]:
    """Load a model as the loader does, into memory of the test's own."""

    def read(path: Path, dtype: DType = "float32") -> DeviceMemory:
        return DeviceMemory(path, Checkpoint.read(path, dtype, BLOCK_SIZE, "cuda"))

    return read
