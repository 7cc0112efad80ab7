"""An engine that another one follows between two steps. Knows nothing of either."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from engine.interface import Chunk, Drawn, Ending, Engine
from protocol.messages import InForce

Heir = Callable[[], tuple[Engine, InForce]]  # and what it runs on


class Succession:
    """Computes by one engine, and from the first step after `offer` on by the other.

    Both see the same memory, so nothing else changes hands but their share.
    """

    def __init__(self, first: Engine, heir: Heir, without: Heir) -> None:
        """`heir` makes the other one, warm; `without` is for when there will be none."""
        self._engine = first
        self.heir, self.without = heir, without
        self._next: Engine | None = None
        self._share: tuple[int, int] | None = None

    def offer(self, engine: Engine) -> None:
        """From any thread."""
        self._next = engine

    def turn(self, *, is_long: bool = False) -> AbstractContextManager[object]:
        if self._next is not None:
            self._engine, self._next = self._next, None
            if self._share is not None:
                self._engine.share(*self._share)
        return self._engine.turn(is_long=is_long)

    def step(self, chunks: Sequence[Chunk]) -> list[Drawn | None]:
        return self._engine.step(chunks)

    def begin(self, chunks: Sequence[Chunk]) -> Ending | None:
        return self._engine.begin(chunks)

    def share(self, percent: int, num_peers: int) -> None:
        self._share = percent, num_peers
        self._engine.share(percent, num_peers)

    @property
    def computes_on(self) -> str:
        return self._engine.computes_on

    def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        self._engine.copy_blocks(copies)
