"""Tensors from the host's memory to a GPU's, at about the speed of the bus.

Pageable memory is copied piece by piece into two pinned buffers, by turns: while the
bus empties one, the cores fill the other.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

PIECE_BYTES = 64 << 20


def copy_to_device(
    sources: Mapping[str, Tensor], targets: Mapping[str, Tensor]
) -> None:
    """Copy each target's source, by name, from the host into the GPU's memory."""
    with torch.inference_mode():
        buffers = [_Pinned(), _Pinned()]
        turn = 0
        for name, target in targets.items():
            if sources[name].is_cuda:
                target.copy_(sources[name])
                continue
            source = _bytes_of(sources[name])
            for part, place in zip(
                source.split(PIECE_BYTES),
                _bytes_of(target).split(PIECE_BYTES),
                strict=True,
            ):
                buffers[turn].send(part, place)
                turn = 1 - turn
    torch.cuda.synchronize()


class _Pinned:
    """A buffer that the bus reads from, and when it last was read."""

    def __init__(self) -> None:
        self._memory = torch.empty(PIECE_BYTES, dtype=torch.uint8, pin_memory=True)
        self._read = torch.cuda.Event()

    def send(self, part: Tensor, place: Tensor) -> None:
        self._read.synchronize()
        staged = self._memory[: len(part)]
        staged.copy_(part)
        place.copy_(staged, non_blocking=True)
        self._read.record()


def _bytes_of(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)
