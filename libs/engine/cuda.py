"""The `cuda` backend: blocks in a GPU's memory, and attention by the Triton kernels."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.attention import ScoreRule
from engine.batch import Batch, Ints
from engine.blocks import offsets
from engine.memory import Memory, as_bytes
from engine.proof import AttentionOf, Backend
from engine.triton_decode import attend_decode, num_more_pieces
from engine.triton_keys import LayerMemory
from engine.triton_store import store
from engine.triton_tiles import attend_tiles
from protocol.memory import KVGeometry


@dataclass(frozen=True, slots=True)
class DeviceBlocks:
    """Block memory, block-major; layout in `protocol.memory`.

    `memory` is [num_blocks, elements of one block] in the blocks' dtype.
    """

    memory: Tensor
    layers: tuple[LayerMemory, ...]

    @classmethod
    def over(cls, memory: Memory, geometry: KVGeometry) -> "DeviceBlocks":
        """View as many whole blocks as the memory holds, without copying."""
        whole = as_bytes(memory)
        num_blocks = len(whole) // geometry.block_bytes
        stored = whole[: num_blocks * geometry.block_bytes]
        return cls._of(stored.view(getattr(torch, geometry.dtype)), geometry)

    @classmethod
    def scratch(
        cls, num_blocks: int, geometry: KVGeometry, device: torch.device
    ) -> "DeviceBlocks":
        """Fresh zeroed blocks of our own, for work that no other process may see."""
        num_bytes = num_blocks * geometry.block_bytes
        memory = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
        return cls._of(memory.view(getattr(torch, geometry.dtype)), geometry)

    @classmethod
    def _of(cls, stored: Tensor, geometry: KVGeometry) -> "DeviceBlocks":
        per_block = geometry.block_bytes // stored.element_size()
        memory = stored.view(-1, per_block)
        k_offsets, v_offsets = offsets(geometry)
        layers = tuple(
            LayerMemory(memory, geometry.block_size, *places)
            for places in zip(k_offsets, v_offsets, geometry.layers, strict=True)
        )
        return cls(memory, layers)

    def copy(self, source: int, target: int) -> None:
        """Make one block's content another's."""
        self.memory[target].copy_(self.memory[source])


@dataclass(frozen=True, slots=True)
class StepInputs:
    """A batch on the device, int32; see `engine.batch.Batch`."""

    token_ids: Tensor  # [num_tokens]
    positions: Tensor  # [num_tokens]
    slot_mapping: Tensor  # [num_tokens]
    rows: Tensor  # [num_sampled]
    tiles: Tensor  # [num_tiles, 4]
    block_tables: Tensor  # [num_chunks, longest table]

    @classmethod
    def upload(cls, batch: Batch, device: torch.device) -> "StepInputs":
        """All of it in one copy over the bus."""
        parts: tuple[Ints, ...] = (
            batch.token_ids,
            batch.positions,
            batch.slot_mapping,
            batch.last_rows,
            batch.tiles_by_cost,
            batch.block_tables,
        )
        packed = np.concatenate([part.ravel() for part in parts]).astype(np.int32)
        there = torch.from_numpy(packed).to(device)
        pieces = there.split([part.size for part in parts])
        shaped = (p.view(part.shape) for p, part in zip(pieces, parts, strict=True))
        return cls(*shaped)


class CudaAttention:
    """One step's attention on a GPU (see `engine.attention.PagedAttention`)."""

    def __init__(self, blocks: DeviceBlocks, inputs: StepInputs) -> None:
        self._blocks = blocks
        self._inputs = inputs

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: ScoreRule
    ) -> Tensor:
        memory, inputs = self._blocks.layers[layer], self._inputs
        store(memory, key, value, inputs.slot_mapping)
        return attend_tiles(query, memory, inputs.block_tables, inputs.tiles, rule)


class DecodeAttention:
    """Attention of a step of one token of each sequence; a CUDA graph can hold it."""

    def __init__(
        self,
        blocks: DeviceBlocks,
        slot_mapping: Tensor,
        block_tables: Tensor,
        lengths: Tensor,
        num_sms: int,
    ) -> None:
        """`lengths` [num_sequences] are the keys that each sees, its own included.

        The step runs on `num_sms` multiprocessors.
        """
        self._num_sms = num_sms
        self._blocks = blocks
        self._slot_mapping = slot_mapping
        self._block_tables = block_tables
        self._lengths = lengths
        # Of the heads of each sequence, how many pieces are done; zero between layers.
        self._arrived = lengths.new_zeros(0)

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: ScoreRule
    ) -> Tensor:
        memory = self._blocks.layers[layer]
        store(memory, key, value, self._slot_mapping)
        num_sequences, num_heads, _ = query.shape
        if len(self._arrived) < num_sequences * num_heads:
            self._arrived = self._lengths.new_zeros(num_sequences * num_heads)
        return attend_decode(
            query,
            memory,
            self._block_tables,
            self._lengths,
            rule,
            num_more_pieces(memory.geometry.num_kv_heads, self._num_sms),
            self._arrived,
        )


def on_device(device: torch.device | None = None) -> Backend:
    """Where a proof runs for a GPU."""
    there = device or torch.device("cuda")

    def over_scratch(num_blocks: int, geometry: KVGeometry) -> AttentionOf:
        blocks = DeviceBlocks.scratch(num_blocks, geometry, there)
        return lambda batch: CudaAttention(blocks, StepInputs.upload(batch, there))

    return Backend(there, over_scratch)
