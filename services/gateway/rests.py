"""How long nothing is tried again at a load. Pure.

Of each load, since what was learnt at another one proves nothing.
"""

import math
from collections import defaultdict
from dataclasses import dataclass

FIRST = 8  # looks
LONGEST = 256
OTHER_LOAD = 1.5  # times as much is another load


@dataclass(slots=True)
class _Rest:
    num_left: int = 0
    next_one: int = FIRST


class Rests:
    """Loads are prompt tokens per second."""

    def __init__(self) -> None:
        self._rests: defaultdict[int, _Rest] = defaultdict(_Rest)

    def take(self, load: float) -> None:
        """Each is twice as long as the one before."""
        rest = self._at(load)
        rest.num_left = rest.next_one
        rest.next_one = min(2 * rest.next_one, LONGEST)

    def go_on(self, load: float) -> None:
        """A look later."""
        rest = self._at(load)
        rest.num_left = max(0, rest.num_left - 1)

    def is_at(self, load: float) -> bool:
        return self._at(load).num_left > 0

    def _at(self, load: float) -> _Rest:
        return self._rests[round(math.log(max(1.0, load), OTHER_LOAD))]
