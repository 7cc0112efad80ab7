"""Which rate is asked next, on a ladder of rates. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import log
from typing import Protocol

from mesh.errors import ConfigurationError

WANTED = 0.9  # of the requests meet their SLOs
RISE = 1.1  # from one rung to the next, where a ladder is ours
LEAP = 4  # rungs, until two of them are around the answer
MAX_POINTS = 10


class Ladder(Protocol):
    """Rates by the number of their rung; None where there is no such rung."""

    @property
    def leap(self) -> int: ...

    def rate(self, rung: int) -> float | None: ...

    def near(self, rate: float) -> int:
        """The rung to begin at, for an answer that may be near this rate."""

    def rung(self, rate: float) -> int:
        """Of a rate that is on it."""


@dataclass(frozen=True, slots=True)
class Endless:
    """The same rates in every experiment: powers of 1.1, to three digits."""

    leap: int = LEAP

    def rate(self, rung: int) -> float | None:
        return float(f"{RISE**rung:.3g}")

    def near(self, rate: float) -> int:
        return self.rung(rate)

    def rung(self, rate: float) -> int:
        return round(log(rate, RISE))


@dataclass(frozen=True, slots=True)
class Listed:
    """A person's rates, from the first one on."""

    rates: tuple[float, ...]  # rising
    leap: int = 1

    def rate(self, rung: int) -> float | None:
        return self.rates[rung] if 0 <= rung < len(self.rates) else None

    def near(self, _: float) -> int:
        return 0

    def rung(self, rate: float) -> int:
        return self.rates.index(rate)


def next_rung(tried: Mapping[int, float], first: int, leap: int) -> int | None:
    """After the attainment at some rungs: up in leaps until one fails, or down until one
    holds, then the middle, until two neighbours are left. None at the end.
    """
    held = [rung for rung, attainment in tried.items() if attainment >= WANTED]
    failed = [rung for rung, attainment in tried.items() if attainment < WANTED]
    if len(tried) >= MAX_POINTS:
        return None
    if not held:
        return min(failed) - leap if failed else first
    highest = max(held)
    above = [rung for rung in failed if rung > highest]
    if not above:
        return highest + leap
    middle = (highest + min(above)) // 2
    return middle if middle > highest else None


def highest_held(tried: Mapping[int, float]) -> int | None:
    held = [rung for rung, attainment in tried.items() if attainment >= WANTED]
    return max(held, default=None)


def listed(text: str) -> tuple[float, ...]:
    """Rates by commas, rising; ConfigurationError if they are none."""
    try:
        rates = tuple(sorted({float(rate) for rate in text.split(",") if rate}))
    except ValueError:
        rates = (0.0,)
    if any(rate <= 0 for rate in rates):
        raise ConfigurationError(f"rates are numbers above 0, not {text!r}")
    return rates
