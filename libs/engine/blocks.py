"""The KV blocks of a pool as an array, and where each layer's K and V lie in them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protocol.memory import DType, KVGeometry

# numpy has no bfloat16: the kernels read its bits, which are a float32's upper half.
STORED_AS: dict[DType, type[np.generic]] = {
    "float32": np.float32,
    "bfloat16": np.uint16,
}


@dataclass(frozen=True, slots=True)
class KVBlocks:
    """Block memory, block-major; layout in `protocol.memory`.

    `memory` is [num_blocks, elements of one block], float32 or the bits of bfloat16.
    `k_offsets` and `v_offsets` are in elements from a block's start, one per layer.
    """

    memory: NDArray[Any]
    block_size: int
    k_offsets: tuple[int, ...]
    v_offsets: tuple[int, ...]

    @classmethod
    def over(cls, buffer: memoryview, geometry: KVGeometry) -> "KVBlocks":
        """View as many whole blocks as the buffer holds, without copying."""
        num_blocks = len(buffer) // geometry.block_bytes
        stored = np.frombuffer(
            buffer[: num_blocks * geometry.block_bytes],
            dtype=STORED_AS[geometry.dtype],
        )
        return cls(
            stored.reshape(num_blocks, -1), geometry.block_size, *offsets(geometry)
        )

    @classmethod
    def scratch(cls, num_blocks: int, geometry: KVGeometry) -> "KVBlocks":
        """Fresh zeroed blocks of our own, for work that no other process may see."""
        buffer = bytearray(num_blocks * geometry.block_bytes)
        return cls.over(memoryview(buffer), geometry)

    def copy(self, source: int, target: int) -> None:
        """Make one block's content another's."""
        self.memory[target] = self.memory[source]


def offsets(geometry: KVGeometry) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Where each layer's K and V begin in a block, in elements."""
    k_offsets, v_offsets, offset = [], [], 0
    for layer in geometry.layers:
        of_keys, of_values = layer.num_elements(geometry.block_size, geometry.packed)
        k_offsets.append(offset)
        v_offsets.append(offset + of_keys)
        offset += of_keys + of_values
    return tuple(k_offsets), tuple(v_offsets)
