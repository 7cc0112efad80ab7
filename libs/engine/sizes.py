"""How many tokens a step has, and what of a recorded step follows from that."""

from typing import Any, NamedTuple

from engine.operations import Unit


class Sizes(NamedTuple):
    """What differs between steps of one kind.

    A step is recorded with two different primes, and a size that is one of them, or a
    number of rows that is a multiple, is taken to be as many as there are.
    """

    tokens: int
    sampled: int

    def scaled(self, value: Any, to: "Sizes") -> Any:
        """An argument of a recorded operation, in a step of other sizes."""
        if isinstance(value, bool) or not isinstance(value, int):
            return value
        return {self.tokens: to.tokens, self.sampled: to.sampled}.get(value, value)

    def units(self, rows: int) -> tuple[Unit, int]:
        """Of what, and how many each, the rows of a recorded operation are."""
        for unit, count in (Unit.TOKENS, self.tokens), (Unit.SAMPLED, self.sampled):
            if rows % count == 0:
                return unit, rows // count
        return Unit.ONE, rows
