"""A step recorded once and replayed: what CUDA graphs are to a GPU.

The same model computes the same operations for every step; only the numbers in its inputs
differ, and how many rows there are. So a step is recorded while transformers' modules run
it, and replayed without them, for any number of tokens. Operations of ours run in one
kernel, without Python in between; others are called as they were.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor

from engine.angles import Angles
from engine.arena import Arena
from engine.batch import Batch, pack
from engine.blocks import KVBlocks
from engine.cpu import CpuAttention
from engine.forward import Forward
from engine.interface import Chunk
from engine.operations import Index, Kind, Unit
from engine.place import Place, place_of
from engine.program import Pauses, Program, program_of, run, with_claims
from engine.recorder import (
    Eager,
    Native,
    Operation,
    Recorder,
    Unrecordable,
    changed,
    storage_of,
    tensors_of,
)
from engine.sizes import Sizes
from engine.threads import Threads
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
_MAX_BOUND = 256  # combinations of sizes that are remembered
_ANYTHING = SamplingParams(temperature=0.0, max_tokens=1)


class Inputs(NamedTuple):
    """What differs from step to step, as the model is given it; int64."""

    token_ids: Tensor  # [1, tokens]
    positions: Tensor  # [1, tokens]
    rows: Tensor  # [sampled], of the tokens


class _Reference(NamedTuple):
    """Stands for a tensor that is another one in each replay."""

    number: int


class Tape:
    """The operations of one step."""

    def __init__(
        self, inputs: Inputs, operations: list[Operation], logits: Tensor
    ) -> None:
        """Raises Unrecordable where an operation reads what nobody can replay."""
        self._recorded = Sizes(inputs.token_ids.shape[1], len(inputs.rows))
        self._inputs, self._logits = inputs, logits
        needed = _needed(inputs, operations, logits)
        others = inputs.token_ids, inputs.rows
        self._angles = Angles(inputs.positions, others, needed, self._recorded)
        rest = needed[len(self._angles.operations) :]
        self._groups = [list(group) for _, group in groupby(rest, type)]
        theirs = [operation for operation in rest if isinstance(operation, Eager)]
        # What torch's operations read, by the recorded tensor.
        self._read = {id(t) for operation in theirs for t in operation.reads}
        self._read.add(id(logits))
        self._num_embeddings = _num_embeddings(needed)
        self._created = {storage_of(t) for each in needed for t in each.creates}
        self._arena = Arena(needed, self._recorded)
        self._programs: list[Program] = []
        self._bound: dict[Sizes, _Bound] = {}

    @classmethod
    def record(
        cls,
        forward: Forward,
        recorder: Recorder,
        geometry: KVGeometry,
        sizes: Sizes,
        *,
        narrows: bool,
    ) -> "Tape":
        """Run a step of such sizes over blocks of our own, and take it down.

        It `narrows` if only sampled rows go on after the last attention. Raises
        Unrecordable when the model decides in Python what to compute.
        """
        batch, blocks = _any_step(sizes, geometry)
        inputs = _inputs(batch)
        with (
            torch.inference_mode(),
            recorder.narrowing(sizes.tokens, inputs.rows) as narrow,
            recorder.recording() as operations,
        ):
            attention = CpuAttention(
                blocks, batch, recorder, narrow=narrow if narrows else None
            )
            logits = forward.run(
                inputs.token_ids, inputs.positions, attention, inputs.rows
            )
        return cls(inputs, operations, logits)

    def replay(self, batch: Batch, blocks: KVBlocks, threads: Threads) -> Tensor:
        """The logits of the sampled rows; they are overwritten by the next replay.

        Raises IndexError for a token that the model has no embedding of, as torch does.
        """
        token_ids = batch.token_ids.tolist()
        if min(token_ids) < 0 or max(token_ids) >= self._num_embeddings:
            raise IndexError("a token id is out of the embedding's range")
        place = place_of(batch, blocks, threads.count)
        sizes = Sizes(len(batch.token_ids), len(batch.last_rows))
        if self._arena.makes_room(sizes):
            self._bound.clear()
            self._programs = [
                _program(ours, self._arena, self._recorded)
                for group in self._groups
                if (ours := [each for each in group if isinstance(each, Native)])
            ]
        if sizes not in self._bound:
            if len(self._bound) == _MAX_BOUND:
                self._bound.clear()
            self._bound[sizes] = self._bind(sizes)
        bound = self._bound[sizes]
        self._angles.look_up(batch.positions, bound.angles)
        return bound.run(batch, place, threads)

    def _bind(self, sizes: Sizes) -> "_Bound":
        """The parts of a step of such sizes."""
        slots = _Slots(self._inputs)
        programs = iter(self._programs)
        parts: list[_Call | Program] = []
        for group in self._groups:
            if isinstance(group[0], Native):
                parts.append(next(programs))
            for operation in group:
                if isinstance(operation, Eager):
                    parts += self._call(operation, slots, sizes)
                    continue
                for tensor in operation.writes:
                    if id(tensor) in self._read:
                        slots.add(tensor, self._arena.view(tensor, sizes))
        angles = [self._arena.view(each, sizes) for each in self._angles.answers]
        placed = [view for view in angles if view is not None]
        return _Bound(parts, slots.values, slots.numbers[id(self._logits)], placed)

    def _call(
        self, operation: Eager, slots: "_Slots", sizes: Sizes
    ) -> Sequence["_Call"]:
        """Nothing for a view of what lies at the same place each time: that is taken now."""
        numbers = slots.numbers
        arguments = self._pattern(operation.arguments, numbers, sizes)
        keywords = self._pattern(operation.keywords, numbers, sizes)
        created = set(map(id, operation.creates))  # else it lies there already
        answers = [
            (
                slots.add(tensor, None),
                self._arena.view(tensor, sizes) if id(tensor) in created else None,
            )
            for tensor in operation.writes
        ]
        call = _Call(operation.function, arguments, keywords, answers)
        read = [numbers[id(t)] for t in operation.reads if id(t) in numbers]
        if operation.creates or any(slots.values[number] is None for number in read):
            return [call]
        call.run(slots.values)
        return []

    def _pattern(self, value: Any, numbers: dict[int, int], sizes: Sizes) -> Any:
        """Arguments, with other sizes and references in them."""

        def change(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return self._recorded.scaled(value, sizes)
            if (number := numbers.get(id(value))) is not None:
                return _Reference(number)
            if storage_of(value) in self._created:
                raise Unrecordable("a tensor comes from nowhere")
            return value

        return changed(value, change)


class _Slots:
    """Tensors of a replay by number, and which number a recorded one has."""

    def __init__(self, inputs: Inputs) -> None:
        self.values: list[Tensor | None] = [None] * len(inputs)
        self.numbers = {id(tensor): i for i, tensor in enumerate(inputs)}

    def add(self, tensor: Tensor, value: Tensor | None) -> int:
        """Its number from now on; no value: it has another one in each replay."""
        self.numbers[id(tensor)] = len(self.values)
        self.values.append(value)
        return len(self.values) - 1


class _Call(NamedTuple):
    """An operation of torch, for steps of certain sizes."""

    function: Any
    arguments: list[Any]
    keywords: dict[str, Any]
    answers: list[tuple[int, Tensor | None]]  # their numbers; where ours look for them

    def run(self, values: list[Any]) -> None:
        keywords = _filled(self.keywords, values) if self.keywords else self.keywords
        answer = self.function(*_filled(self.arguments, values), **keywords)
        tensors = (answer,) if isinstance(answer, Tensor) else tensors_of((answer,))
        for (number, place), tensor in zip(self.answers, tensors, strict=True):
            values[number] = tensor
            if place is not None:
                place.copy_(tensor)


class _Bound:
    """All operations, for steps of certain sizes."""

    def __init__(
        self,
        parts: list[_Call | Program],
        values: list[Tensor | None],
        logits: int,
        angles: list[Tensor],
    ) -> None:
        self.angles = angles
        self._parts, self._values, self._logits = parts, values, logits
        self._is_ours = all(isinstance(part, Program) for part in parts)

    def run(self, batch: Batch, place: Place, pauses: Pauses) -> Tensor:
        if self._is_ours:
            return self._run(self._values, place, pauses)
        inputs = _inputs(batch)
        with torch.inference_mode():
            values = [*inputs, *self._values[len(inputs) :]]
            return self._run(values, place, pauses)

    def _run(self, values: list[Tensor | None], place: Place, pauses: Pauses) -> Tensor:
        for part in self._parts:
            if isinstance(part, _Call):
                part.run(values)
            else:
                run(part, place, pauses)
        logits = values[self._logits]
        assert logits is not None, "the last operation gives them"
        return logits


def _filled(pattern: Any, values: Sequence[Any]) -> Any:
    """Arguments with the tensors of this step."""
    if isinstance(pattern, _Reference):
        return values[pattern.number]
    if isinstance(pattern, dict):
        return {key: _filled(value, values) for key, value in pattern.items()}
    if not isinstance(pattern, list):
        return pattern
    return [
        values[each.number]
        if isinstance(each, _Reference)
        else _filled(each, values)
        if isinstance(each, list)
        else each
        for each in pattern
    ]


def _any_step(sizes: Sizes, geometry: KVGeometry) -> tuple[Batch, KVBlocks]:
    """One of such sizes: a long chunk and otherwise single tokens."""
    lengths = [sizes.tokens - sizes.sampled + 1] + [1] * (sizes.sampled - 1)
    first, chunks = 0, []
    for length in lengths:
        end = first + geometry.num_blocks(length + 1)
        table = list(range(first, end))
        tokens = [i % 2 for i in range(length)]
        chunks.append(Chunk(tokens, 1, table, _ANYTHING, 0))
        first = end
    return pack(chunks, geometry.block_size), KVBlocks.scratch(first, geometry)


def _inputs(batch: Batch) -> Inputs:
    token_ids, positions, rows = map(
        torch.from_numpy, (batch.token_ids, batch.positions, batch.last_rows)
    )
    return Inputs(token_ids.unsqueeze(0), positions.unsqueeze(0), rows)


def _needed(
    inputs: Inputs, operations: Sequence[Operation], logits: Tensor
) -> list[Operation]:
    """What has to be done again, in order: all that the logits or the blocks depend on.

    Of torch's views those that torch's own operations read; ours know memory only.
    """
    storages, tensors = {storage_of(logits)}, {id(logits)}
    needed: list[Operation] = []
    for recorded in reversed(operations):
        operation = _as_native(inputs, recorded)
        written = set(map(storage_of, operation.writes))
        if isinstance(operation, Native):
            if operation.kind is not Kind.STORE and storages.isdisjoint(written):
                continue
            tensors.difference_update(map(id, operation.writes))
        else:
            if operation.function in _ALLOCATING:
                continue
            is_view = not operation.creates
            if is_view and tensors.isdisjoint(map(id, operation.writes)):
                continue
            if not is_view and storages.isdisjoint(written):
                continue
            tensors.update(map(id, operation.reads))
        storages.update(map(storage_of, operation.reads))
        needed.append(operation)
    return _theirs_first(_packed_once(needed[::-1]))


def _theirs_first(operations: Sequence[Operation]) -> list[Operation]:
    """Torch's operations before ours where they do not need them: fewer, longer programs."""
    first: list[Operation] = []
    rest: list[Operation] = []
    written: set[int] = set()  # by the rest
    for operation in operations:
        reads = map(storage_of, operation.reads)
        if isinstance(operation, Eager) and written.isdisjoint(reads):
            first.append(operation)
        else:
            rest.append(operation)
            written.update(map(storage_of, operation.writes))
    return first + rest


def _packed_once(operations: Sequence[Operation]) -> list[Operation]:
    """Without packing again what lies packed already."""
    packed: dict[int, Tensor] = {}  # rows that have not been written since
    instead: dict[int, Tensor] = {}
    kept: list[Operation] = []
    for operation in operations:
        if isinstance(operation, Native):
            operands = tuple(instead.get(id(t), t) for t in operation.operands)
            operation = replace(operation, operands=operands)
            if operation.kind is Kind.PACK:
                rows, panels = operation.operands
                if (before := packed.get(storage_of(rows))) is not None:
                    instead[id(panels)] = before
                    continue
                packed[storage_of(rows)] = panels
        for tensor in operation.writes:
            packed.pop(storage_of(tensor), None)
        kept.append(operation)
    return kept


def _as_native(inputs: Inputs, operation: Operation) -> Operation:
    """Some of torch's operations are ours in a tape."""
    if isinstance(operation, Native) or operation.keywords:
        return operation
    if operation.function is aten.add.Tensor:
        a, b, y = (*operation.arguments[:2], operation.answer)
        if isinstance(b, Tensor) and a.shape == b.shape and _are_plain(a, b, y):
            dim = y.shape[-1]
            return Native(Kind.ADD, y.numel() // dim, (a, b, y), (dim,))
    elif operation.function is aten.embedding.default:
        weight, token_ids, y = (*operation.arguments[:2], operation.answer)
        if token_ids is inputs.token_ids and _are_plain(weight, y):
            sizes = weight.shape[1], Index.TOKEN_IDS
            return Native(Kind.PICK, token_ids.numel(), (weight, y), sizes)
    elif operation.function is aten.index.Tensor:
        x, index, y = (*operation.arguments, operation.answer)
        is_row = len(index) == 2 and index[0] is None and index[1] is inputs.rows
        if is_row and len(x) == 1 and x.dim() == 3 and _are_plain(x, y):
            sizes = x.shape[2], Index.SAMPLED
            return Native(Kind.PICK, len(inputs.rows), (x, y), sizes)
    return operation


def _num_embeddings(operations: Sequence[Operation]) -> int:
    """How many there are of every embedding that is read by our kernel, unchecked."""
    picks = (o for o in operations if isinstance(o, Native) and o.kind is Kind.PICK)
    tables = [len(o.operands[0]) for o in picks if o.sizes[1] == Index.TOKEN_IDS]
    return min(tables, default=sys.maxsize)  # torch's own operations check


def _are_plain(*tensors: Tensor) -> bool:
    return all(t.dtype == torch.bfloat16 and t.is_contiguous() for t in tensors)


def _program(operations: Sequence[Native], arena: Arena, recorded: Sizes) -> Program:
    """Operations of ours that follow each other, over the arena as it is laid out."""
    program = program_of(len(operations))
    for i, operation in enumerate(operations):
        unit, rows = recorded.units(operation.rows)
        if operation.kind is Kind.DEQUANTIZE:  # as many as there are outputs
            unit, rows = Unit.ONE, operation.rows
        program.kinds[i], program.units[i], program.rows[i] = operation.kind, unit, rows
        numbers = [*map(arena.address, operation.operands), *operation.sizes]
        program.numbers[i, : len(numbers)] = numbers
        program.constants[i, : len(operation.constants)] = operation.constants
    touched = [_touched(operation, arena) for operation in operations]
    for i, (reads, writes) in enumerate(touched):
        before = range(i - 1, -1, -1)
        conflicts = (
            j
            for j in before
            if _overlap(writes, touched[j][1] + touched[j][0])
            or _overlap(reads, touched[j][1])
        )
        program.after[i] = next(conflicts, -1)
    return with_claims(program, *arena.room)


def _touched(operation: Native, arena: Arena) -> tuple[list[range], list[range]]:
    """The bytes that an operation reads, and those that it writes.

    A layer's blocks are a byte before the arena's first one.
    """
    reads = [arena.span(tensor) for tensor in operation.reads]
    writes = [arena.span(tensor) for tensor in operation.writes]
    if operation.kind in (Kind.STORE, Kind.ATTEND):
        k_offset = operation.sizes[3]
        blocks = range(-1 - k_offset, -k_offset)
        (writes if operation.kind is Kind.STORE else reads).append(blocks)
    return reads, writes


def _overlap(some: Sequence[range], others: Sequence[range]) -> bool:
    return any(
        a.start < b.stop and b.start < a.stop for a in some for b in others if a and b
    )
