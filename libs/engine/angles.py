"""What a step computes of its tokens' positions alone, rotary angles mostly: looked up.

These are a dozen of torch's operations on a few numbers each, and take as long as a layer:
between two steps the caches are empty, and all their code is read from memory again.
"""

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.batch import Ints
from engine.recorder import Eager, Operation, changed, storage_of
from engine.sizes import Sizes

_FIRST_ROWS = 2048  # positions; then twice as many, as soon as one comes

aten = torch.ops.aten
# What they do to one token they do whatever the others are.
_BY_TOKEN = frozenset(
    {
        aten.cat.default,
        aten.cos.default,
        aten.mul.Tensor,
        aten.sin.default,
        aten.to.device,
        aten.to.dtype,
        aten.unsqueeze.default,
    }
)


class Angles:
    """The first operations of a step, as far as they know only positions."""

    def __init__(
        self,
        positions: Tensor,
        others: Sequence[Tensor],
        operations: Sequence[Operation],
        recorded: Sizes,
    ) -> None:
        """`positions` [1, tokens] and other inputs are what they were recorded with."""
        self._positions, self._recorded = positions, recorded
        self.operations = _without(others, operations)
        rest = operations[len(self.operations) :]
        read = {storage_of(t) for operation in rest for t in operation.reads}
        made = [t for operation in self.operations for t in operation.creates]
        self.answers = [t for t in made if storage_of(t) in read]
        if not self._fit(rest):
            self.operations, self.answers = [], []
        self._tables: list[NDArray[Any]] = []  # of each answer, [positions, dim]
        self._num_rows = 0

    def look_up(self, positions: Ints, places: Sequence[Tensor]) -> None:
        """Put the answers where others look for them, [1, tokens, dim] each."""
        if not places:
            return
        if (last := max(positions.tolist())) >= self._num_rows:
            self._num_rows = max(_FIRST_ROWS, 1 << last.bit_length())
            self._tables = self._computed(self._num_rows)
        for table, place in zip(self._tables, places, strict=True):
            table.take(positions, axis=0, out=_bits(place), mode="clip")

    def _fit(self, rest: Sequence[Operation]) -> bool:
        """Whether operations of ours read the answers, and as rows of tokens."""
        theirs = {id(t) for op in rest if isinstance(op, Eager) for t in op.reads}
        written = {id(t) for operation in self.operations for t in operation.writes}
        return theirs.isdisjoint(written) and all(
            t.dtype == torch.bfloat16
            and t.dim() == 3
            and t.shape[:2] == self._positions.shape
            and t.is_contiguous()
            for t in self.answers
        )

    def _computed(self, num_rows: int) -> list[NDArray[Any]]:
        """The answers for the first positions there are."""
        values = {id(self._positions): torch.arange(num_rows).unsqueeze(0)}
        sizes = self._recorded._replace(tokens=num_rows)

        def now(value: Any) -> Any:
            if isinstance(value, Tensor):
                return values.get(id(value), value)
            return self._recorded.scaled(value, sizes)

        with torch.inference_mode():
            for each in self.operations:
                arguments, keywords = changed((each.arguments, each.keywords), now)
                values[id(each.answer)] = each.function(*arguments, **keywords)
        return [_bits(values[id(answer)]) for answer in self.answers]


def _bits(rows: Tensor) -> NDArray[Any]:
    bits: NDArray[Any] = rows[0].view(torch.int16).numpy()
    return bits


def _without(inputs: Sequence[Tensor], operations: Sequence[Operation]) -> list[Eager]:
    """The first operations, as long as they read none of these."""
    unknown = set(map(storage_of, inputs))
    found: list[Eager] = []
    for operation in operations:
        if not isinstance(operation, Eager) or operation.function not in _BY_TOKEN:
            break
        if not unknown.isdisjoint(map(storage_of, operation.reads)):
            break
        found.append(operation)
    return found
