"""What a step computes, operation by operation, written down while it runs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from numba import get_num_threads
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from engine.program import NOWHERE, Kind, program_of, run


class Unrecordable(Exception):
    """What a step computes depends on more than the values of its tensors."""


@dataclass(frozen=True, slots=True)
class Native:
    """An operation of ours, as `engine.program` runs it. Keeps its tensors alive."""

    kind: Kind
    tasks: int
    numbers: tuple[int, ...]
    constants: tuple[float, ...]
    reads: tuple[Tensor, ...]
    writes: tuple[Tensor, ...]


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


class Recorder:
    """Does operations of ours, and takes down all of them while somebody wants them."""

    def __init__(self) -> None:
        self._operations: list[Operation] | None = None
        self._program = program_of(1)
        self._wanted: tuple[int, Tensor] | None = None

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

    def do(
        self,
        kind: Kind,
        tasks: int,
        numbers: tuple[int, ...],
        reads: tuple[Tensor, ...],
        writes: tuple[Tensor, ...],
        constants: tuple[float, ...] = (),
    ) -> None:
        """One operation of ours, at once, on all threads that this thread may use."""
        program = self._program
        program.kinds[0], program.tasks[0] = kind, tasks
        program.numbers[0, : len(numbers)] = numbers
        program.constants[0, : len(constants)] = constants
        threads = min(tasks, get_num_threads())
        run(program, NOWHERE, threads)
        self.note(Native(kind, tasks, numbers, constants, reads, writes))

    def note(self, operation: Native) -> None:
        """An operation of ours was done; forgotten where nobody records."""
        if self._operations is not None:
            self._operations.append(operation)


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
