"""The memory in which a tape's tensors lie, each while somebody still reads it."""

from collections.abc import Iterable, Sequence
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from engine.panels import PANEL
from engine.recorder import Native, Operation, Unrecordable, storage_of
from engine.sizes import Sizes

_ALIGNMENT = 64  # bytes: a cache line


class _Life(NamedTuple):
    """A place that is taken until an operation has read it."""

    start: int
    end: int
    last: int


class Arena:
    """A place for each tensor that an operation writes and one of ours writes or reads."""

    def __init__(self, operations: Sequence[Operation], recorded: Sizes) -> None:
        self._operations, self._recorded = operations, recorded
        self._writers = _writers(operations)
        self._places: dict[int, int] = {}  # of a storage, its first byte
        self.room = Sizes(0, 0)
        self._memory = torch.empty(0, dtype=torch.uint8)

    def makes_room(self, sizes: Sizes) -> bool:
        """Whether for such a step everything had to be laid out anew."""
        if sizes.tokens <= self.room.tokens and sizes.sampled <= self.room.sampled:
            return False
        # Whole panels, and twice as many: lengths grow in few steps.
        tokens, sampled = (
            max(have, -(-2 * want // PANEL) * PANEL)
            for want, have in zip(sizes, self.room, strict=True)
        )
        self.room = Sizes(tokens, sampled)
        self._lay_out()
        return True

    def view(self, tensor: Tensor, sizes: Sizes) -> Tensor | None:
        """A recorded tensor as it is in a step of such sizes; None if it has no place."""
        start = self._places.get(storage_of(tensor))
        if start is None:
            return None
        shape = [self._recorded.scaled(size, sizes) for size in tensor.shape]
        size = prod(shape) * tensor.itemsize
        memory = self._memory[start : start + size].view(tensor.dtype)
        # As it lies: transposed, perhaps.
        order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
        places = [order.index(dim) for dim in range(tensor.dim())]
        return memory.view([shape[dim] for dim in order]).permute(places)

    def address(self, tensor: Tensor) -> int:
        """Where an operand lies: in the arena, or where it was if nobody writes it."""
        start = self._places.get(storage_of(tensor))
        return tensor.data_ptr() if start is None else self._memory.data_ptr() + start

    def span(self, tensor: Tensor) -> range:
        """The bytes of it that a step may touch; none if nobody writes it."""
        start = self._places.get(storage_of(tensor))
        return range(0) if start is None else range(start, start + self._bytes(tensor))

    def _bytes(self, tensor: Tensor) -> int:
        """What the tensor that was first written there takes, with room for panels."""
        written = self._writers[storage_of(tensor)]
        shape = (self._recorded.scaled(size, self.room) for size in written.shape)
        return int(prod(shape)) * written.itemsize

    def _lay_out(self) -> None:
        last = {
            storage_of(tensor): i
            for i, operation in enumerate(self._operations)
            for tensor in (*operation.reads, *operation.writes)
        }
        self._places.clear()
        lives: list[_Life] = []
        for i, operation in enumerate(self._operations):
            lives = [life for life in lives if life.last >= i]
            for tensor in operation.writes:
                storage = storage_of(tensor)
                if storage not in self._writers or storage in self._places:
                    continue
                size = -(-self._bytes(tensor) // _ALIGNMENT) * _ALIGNMENT
                start = _first_gap(lives, size)
                # A step's answer is the last thing that is written, and stays.
                lives.append(_Life(start, start + size, last[storage]))
                self._places[storage] = start
        end = max((self._end(s) for s in self._places), default=0)
        self._memory = torch.empty(end, dtype=torch.uint8)

    def _end(self, storage: int) -> int:
        return self._places[storage] + self._bytes(self._writers[storage])


def _writers(operations: Iterable[Operation]) -> dict[int, Tensor]:
    """What is first written into each storage that an operation of ours touches.

    Raises Unrecordable where it would read a part of what was written.
    """
    written: dict[int, Tensor] = {}
    touched: set[int] = set()
    for operation in operations:
        if isinstance(operation, Native):
            for operand in operation.operands:
                touched.add(storage_of(operand))
                if operand.data_ptr() == storage_of(operand):
                    continue
                if storage_of(operand) in written:
                    raise Unrecordable("a part of a tensor is read")
        for tensor in operation.creates:
            written.setdefault(storage_of(tensor), tensor)
    found = {storage: t for storage, t in written.items() if storage in touched}
    if not all(map(torch.ops.aten.is_non_overlapping_and_dense, found.values())):
        raise Unrecordable("a tensor has gaps")
    return found


def _first_gap(lives: Iterable[_Life], size: int) -> int:
    start = 0
    for life in sorted(lives):
        if life.start - start >= size:
            return start
        start = max(start, life.end)
    return start
