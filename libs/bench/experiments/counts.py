"""How many workers each phase has, and a walk through such numbers."""

from collections.abc import Sequence

from pydantic import BaseModel

from mesh.errors import ConfigurationError

MAX_CONTAINERS = 64  # of a phase


class Counts(BaseModel, frozen=True):
    """Of workers, by phase; fields are names of compose services."""

    prefill: int
    decode: int

    def __str__(self) -> str:
        return f"{self.prefill} prefill, {self.decode} decode"


def walk(prefill: Sequence[int], decode: Sequence[int]) -> list[Counts]:
    """All combinations, each beside the one before it in these lists."""
    return [
        Counts(prefill=of_prefill, decode=of_decode)
        for row, of_prefill in enumerate(prefill)
        for of_decode in (decode if row % 2 == 0 else reversed(decode))
    ]


def parsed(option: str, text: str) -> list[int]:
    """Of numbers by commas; ConfigurationError names the option if there are none."""
    try:
        numbers = [int(each) for each in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or not all(1 <= each <= MAX_CONTAINERS for each in numbers):
        raise ConfigurationError(
            f"{option} takes numbers from 1 to {MAX_CONTAINERS}, like 1,2,3"
        )
    return numbers
