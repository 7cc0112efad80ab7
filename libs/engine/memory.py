"""A pool's memory as an engine gets it: bytes that another process owns."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from protocol.memory import KVGeometry, TensorSpec


class DeviceMemory(Protocol):
    """Bytes in a GPU's memory."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]: ...


Memory = memoryview | DeviceMemory


@dataclass(frozen=True, slots=True)
class MappedMemory:
    """A pool's memory, mapped, and what lies in it."""

    weights: Memory  # may be read-only
    tensors: Sequence[TensorSpec]
    blocks: Memory
    geometry: KVGeometry


def place(tensor: Tensor) -> range:
    """The addresses in this process where a contiguous tensor lies."""
    start = tensor.data_ptr()
    return range(start, start + tensor.nbytes)


def as_bytes(memory: Memory) -> Tensor:
    """All of it, [size_bytes] uint8, without copying."""
    if not isinstance(memory, memoryview):
        return torch.as_tensor(memory, device="cuda")
    with warnings.catch_warnings():
        # The mapping is read-only on purpose: the weights belong to every worker.
        warnings.filterwarnings("ignore", "The given buffer is not writable")
        return torch.frombuffer(memory, dtype=torch.uint8)
