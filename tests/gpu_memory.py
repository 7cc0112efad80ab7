"""A model in a GPU's memory that a test owns. Imported by tests for a GPU alone."""

from dataclasses import dataclass
from pathlib import Path

import torch
from small_models import NUM_BLOCKS

from engine.checkpoint import Checkpoint
from engine.memory import MappedMemory


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
