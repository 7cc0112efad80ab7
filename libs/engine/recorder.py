"""What a step computes, operation by operation, written down while it runs."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from numba import get_num_threads
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from engine.operations import Kind, Unit
from engine.place import NOWHERE, Place
from engine.program import Program, program_of, run


class Unrecordable(Exception):
    """What a step computes depends on more than the values of its tensors."""


@dataclass(frozen=True, slots=True)
class Native:
    """An operation of ours, as `engine.program` runs it. Keeps its tensors alive."""

    kind: Kind
    rows: int
    operands: tuple[Tensor, ...]
    sizes: tuple[int, ...]
    constants: tuple[float, ...] = ()

    @property
    def reads(self) -> tuple[Tensor, ...]:
        return self.operands if self.kind is Kind.STORE else self.operands[:-1]

    @property
    def writes(self) -> tuple[Tensor, ...]:
        return () if self.kind is Kind.STORE else self.operands[-1:]

    @property
    def creates(self) -> tuple[Tensor, ...]:
        """Tensors whose memory was nobody's before."""
        return self.writes


@dataclass(frozen=True, slots=True)
class Eager:
    """An operation of torch, with what it was called with and what it answered."""

    function: Any
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    answer: Any

    @property
    def reads(self) -> tuple[Tensor, ...]:
        return tensors_of((*self.arguments, *self.keywords.values()))

    @property
    def writes(self) -> tuple[Tensor, ...]:
        return tensors_of((self.answer,))

    @property
    def creates(self) -> tuple[Tensor, ...]:
        """Tensors whose memory was nobody's before: none by a view."""
        read = set(map(storage_of, self.reads))
        return tuple(t for t in self.writes if storage_of(t) not in read)


Operation = Native | Eager


def tensors_of(values: Any) -> tuple[Tensor, ...]:
    """The tensors among some arguments, also inside lists."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found.extend(tensors_of(value))
    return tuple(found)


def changed(value: Any, change: Callable[[Any], Any]) -> Any:
    """Arguments of an operation with each of them changed, also inside lists."""
    if isinstance(value, list | tuple):
        return [changed(each, change) for each in value]
    if isinstance(value, dict):
        return {key: changed(each, change) for key, each in value.items()}
    return change(value)


def storage_of(tensor: Tensor) -> int:
    """By what tensors of the same memory are known."""
    return tensor.untyped_storage().data_ptr()


class Recorder:
    """Does operations of ours, and takes down all of them while somebody wants them."""

    def __init__(self) -> None:
        self._operations: list[Operation] | None = None
        self._wanted: tuple[int, Tensor] | None = None

    @cached_property
    def _program(self) -> Program:
        return program_of(1)  # which loads the kernels

    @contextmanager
    def recording(self) -> Iterator[list[Operation]]:
        """All operations until the end of the block, ours and torch's.

        Raises Unrecordable inside it, where one cannot be replayed.
        """
        self._operations = operations = list[Operation]()
        try:
            with _Listener(operations):
                yield operations
        finally:
            self._operations = None

    @contextmanager
    def narrowing(self, num_tokens: int, rows: Tensor) -> Iterator[Callable[[], None]]:
        """A pass of so many tokens, of which the logits of some rows are wanted.

        From the call of what this gives to the end of the block only these rows are:
        after the last attention no token hears of another.
        """

        def narrow() -> None:
            self._wanted = num_tokens, rows

        try:
            yield narrow
        finally:
            self._wanted = None

    def wanted(self, x: Tensor) -> Tensor | None:
        """The rows that are, if x is the whole pass, [1, num_tokens, dim]; None: all."""
        if self._wanted is None or x.dim() != 3:
            return None
        num_tokens, rows = self._wanted
        return rows if x.shape[:2] == (1, num_tokens) else None

    def unwanted(self, some: Tensor, num_tokens: int) -> Tensor:
        """Room for rows of the whole pass, of which only the wanted ones will be read."""
        shape = 1, num_tokens, some.shape[-1]
        if self._operations is not None:
            return some.new_empty(shape)
        return some.new_zeros(shape)  # so that no broken number is left in them

    def do(
        self,
        kind: Kind,
        rows: int,
        operands: tuple[Tensor, ...],
        sizes: tuple[int, ...],
        constants: tuple[float, ...] = (),
    ) -> None:
        """One operation of ours, at once, on all threads that this thread may use."""
        operation = Native(kind, rows, operands, sizes, constants)
        place = NOWHERE._replace(num_threads=get_num_threads())
        if self._wanted is not None:
            place = place._replace(last_rows=self._wanted[1].numpy())
        compute([operation], self._program, place)
        self.note(operation)

    def note(self, operation: Native) -> None:
        """An operation of ours was done; forgotten where nobody records."""
        if self._operations is not None:
            self._operations.append(operation)


def compute(
    operations: Sequence[Native],
    program: Program,
    place: Place,
    unit: Unit = Unit.ONE,
) -> None:
    """Do these, one after the other, at once; `program` has room for as many.

    Operands are contiguous and in the order of the kind's addresses. Of what attends the
    unit says which tiles do.
    """
    program.units[:] = unit
    for i, operation in enumerate(operations):
        addresses = [operand.data_ptr() for operand in operation.operands]
        numbers = *addresses, *operation.sizes
        program.kinds[i], program.rows[i] = operation.kind, operation.rows
        program.numbers[i, : len(numbers)] = numbers
        program.constants[i, : len(operation.constants)] = operation.constants
    run(program, place)


class _Listener(TorchDispatchMode):
    """Hears of every operation of torch."""

    # Their answers depend on values, on chance, or have a size that does.
    _REFUSED = frozenset(
        {
            torch.Tag.data_dependent_output,
            torch.Tag.dynamic_output_shape,
            torch.Tag.nondeterministic_seeded,
        }
    )

    def __init__(self, operations: list[Operation]) -> None:
        super().__init__()
        self._operations = operations

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        depends = self._REFUSED & set(function.tags) and not _picks(function, args)
        if depends or function._schema.is_mutable:
            raise Unrecordable(str(function))
        answer = function(*args, **(kwargs or {}))
        self._operations.append(Eager(function, args, kwargs or {}, answer))
        return answer


def _picks(function: Any, arguments: Any) -> bool:
    """Rows by their numbers: as many as there are numbers. Only masks choose how many."""
    return function is torch.ops.aten.index.Tensor and all(
        index.dtype == torch.int64 for index in tensors_of(arguments[1])
    )
