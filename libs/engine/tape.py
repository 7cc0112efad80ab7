"""A decode step recorded once and replayed: what CUDA graphs are to a GPU.

The same model computes the same operations for every step of so many sequences; only the
numbers in its inputs differ. So a step is recorded while transformers' modules run it,
and replayed without them over the same tensors. Operations of ours run in one kernel,
without Python in between; others are called as they were.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

import torch
from torch import Tensor

from engine.batch import Batch, pack
from engine.blocks import KVBlocks
from engine.cpu import CpuAttention
from engine.forward import Forward
from engine.interface import Chunk
from engine.modules import FEW_ROWS
from engine.program import Kind, Place, program_of, run
from engine.recorder import Eager, Native, Operation, Recorder, Unrecordable
from protocol.memory import KVGeometry
from protocol.sampling import SamplingParams

aten = torch.ops.aten
_ALLOCATING = frozenset(
    {
        aten.empty.memory_format,
        aten.empty_like.default,
        aten.empty_strided.default,
        aten.new_empty.default,
    }
)
# Of the logits' norm. A tape does the very same arithmetic: what differs is an error.
_TOLERANCE = 1e-3
_ANYTHING = SamplingParams(temperature=0.0, max_tokens=1)


class Tapes:
    """Of each number of sequences that decode together its tape, once it was needed."""

    def __init__(
        self, forward: Forward, recorder: Recorder, geometry: KVGeometry
    ) -> None:
        self._forward = forward
        self._recorder = recorder
        self._geometry = geometry
        self._tapes: dict[int, Tape | None] = {}
        self.reason = ""  # why steps seen so far have no tape; empty where they have

    def logits(self, batch: Batch, blocks: KVBlocks, threads: int) -> Tensor:
        """As `Forward`, of every row, writing K/V into `blocks`."""
        num_rows = len(batch.token_ids)
        if tape := self._tapes.get(num_rows):
            return tape.replay(batch, blocks, threads)
        rows = torch.arange(num_rows)
        expected = self._forward(batch, CpuAttention(blocks, batch), rows)
        # Broken numbers prove nothing: another step may.
        if num_rows not in self._tapes and bool(expected.isfinite().all()):
            self._tapes[num_rows] = self._proved(batch, blocks, threads, expected)
        return expected

    @staticmethod
    def suits(batch: Batch) -> bool:
        """Whether the batch is one token of each of a few sequences."""
        num_rows = len(batch.token_ids)
        return num_rows <= FEW_ROWS and num_rows == len(batch.block_tables)

    def _proved(
        self, batch: Batch, blocks: KVBlocks, threads: int, expected: Tensor
    ) -> "Tape | None":
        """A tape that was recorded with other numbers and answers these as expected."""
        try:
            tape = Tape.record(
                self._forward, self._recorder, self._geometry, len(expected)
            )
        except Unrecordable as error:
            # A mixture of experts chooses them in Python, for instance.
            self.reason = f"a step depends on more than numbers: {error}"
            return None
        found = tape.replay(batch, blocks, threads).float()
        difference = (found - expected.float()).norm()
        if difference <= _TOLERANCE * expected.float().norm():
            return tape
        self.reason = "a recorded step answered other than the model"
        return None


class Tape:
    """The operations of one step, and the tensors that they read and write."""

    def __init__(
        self, inputs: tuple[Tensor, Tensor], operations: list[Operation], logits: Tensor
    ) -> None:
        self._token_ids, self._positions = (tensor.numpy()[0] for tensor in inputs)
        self._inputs = inputs
        self._logits = logits
        needed = _needed(operations, logits)
        self._parts: list[Callable[[Place, int], None]] = []
        for _, group in groupby(needed, type):
            self._parts.append(_part(list(group)))
        self._operations = needed  # for their tensors

    @classmethod
    def record(
        cls, forward: Forward, recorder: Recorder, geometry: KVGeometry, num_rows: int
    ) -> "Tape":
        """Run a step of so many sequences over blocks of our own, and take it down.

        Raises Unrecordable when the model decides in Python what to compute.
        """
        chunks = [Chunk([row], 1, [row], _ANYTHING, 0) for row in range(num_rows)]
        batch = pack(chunks, geometry.block_size)
        blocks = KVBlocks.scratch(num_rows, geometry)
        token_ids, positions = (
            torch.from_numpy(values.copy()).unsqueeze(0)
            for values in (batch.token_ids, batch.positions)
        )
        attention = CpuAttention(blocks, batch, recorder)
        rows = torch.arange(num_rows)
        with torch.inference_mode(), recorder.recording() as operations:
            logits = forward.run(token_ids, positions, attention, rows)
        return cls((token_ids, positions), operations, logits)

    def replay(self, batch: Batch, blocks: KVBlocks, threads: int) -> Tensor:
        """The logits of every row; they are overwritten by the next replay."""
        self._token_ids[:] = batch.token_ids
        self._positions[:] = batch.positions
        place = Place(
            blocks.memory,
            blocks.block_size,
            batch.slot_mapping,
            batch.block_tables,
            batch.positions,
        )
        with torch.inference_mode():
            for part in self._parts:
                part(place, threads)
        return self._logits


def _needed(operations: Sequence[Operation], logits: Tensor) -> list[Operation]:
    """What has to be done again, in order: all that the logits or the blocks depend on."""
    wanted = {_storage(logits)}
    needed: list[Operation] = []
    for operation in reversed(operations):
        is_kept = isinstance(operation, Native) and operation.kind is Kind.STORE
        if not is_kept and wanted.isdisjoint(map(_storage, operation.writes)):
            continue
        wanted.update(map(_storage, operation.reads))
        if isinstance(operation, Eager) and _does_nothing(operation):
            continue
        needed.append(_as_native(operation))
    return needed[::-1]


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _does_nothing(operation: Eager) -> bool:
    """Views and empty memory are what they were."""
    if operation.function in _ALLOCATING:
        return True
    read = set(map(_storage, operation.reads))
    return all(_storage(tensor) in read for tensor in operation.writes)


def _as_native(operation: Operation) -> Operation:
    """Sums of activations are torch's in the modules and ours in a tape."""
    if isinstance(operation, Native) or operation.function is not aten.add.Tensor:
        return operation
    a, b, y = (*operation.arguments[:2], operation.answer)
    if operation.keywords or not isinstance(b, Tensor) or a.shape != b.shape:
        return operation
    if any(t.dtype != torch.bfloat16 or not t.is_contiguous() for t in (a, b, y)):
        return operation
    dim = y.shape[-1]
    rows = y.numel() // dim
    numbers = (a.data_ptr(), b.data_ptr(), y.data_ptr(), rows, dim)
    return Native(Kind.ADD, rows, numbers, (), (a, b), (y,))


def _part(operations: list[Operation]) -> Callable[[Place, int], None]:
    """How to do operations again that follow each other and are of one type."""
    ours = [operation for operation in operations if isinstance(operation, Native)]
    theirs = [operation for operation in operations if isinstance(operation, Eager)]
    return _native(ours) if ours else _eager(theirs)


def _native(operations: list[Native]) -> Callable[[Place, int], None]:
    count = len(operations)
    program = program_of(count)
    for index, operation in enumerate(operations):
        program.kinds[index], program.tasks[index] = operation.kind, operation.tasks
        program.numbers[index, : len(operation.numbers)] = operation.numbers
        program.constants[index, : len(operation.constants)] = operation.constants
    return lambda place, threads: run(program, place, threads)


def _eager(operations: list[Eager]) -> Callable[[Place, int], None]:
    def call(place: Place, threads: int) -> None:
        for operation in operations:
            answer = operation.function(*operation.arguments, **operation.keywords)
            for new, old in _pairs(answer, operation.answer):
                old.copy_(new)

    return call


def _pairs(new: object, old: object) -> Iterator[tuple[Tensor, Tensor]]:
    if isinstance(old, Tensor):
        assert isinstance(new, Tensor), "another kind of answer"
        yield new, old
    elif isinstance(old, list | tuple):
        assert isinstance(new, list | tuple), "another kind of answer"
        for one, other in zip(new, old, strict=True):
            yield from _pairs(one, other)
