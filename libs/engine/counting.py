"""An engine that counts upwards: enough model to test everything that is no model."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

from engine.interface import Chunk, Drawn


class CountingEngine:
    """Answers each sequence's last token plus one, for sure, and touches no memory."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size

    def turn(self, *, is_long: bool = False) -> AbstractContextManager[object]:
        """Nobody waits for it."""
        return nullcontext()

    def step(self, chunks: Sequence[Chunk]) -> list[Drawn | None]:
        return [
            None if chunk.sample_index is None else self._next(chunk)
            for chunk in chunks
        ]

    def _next(self, chunk: Chunk) -> Drawn:
        token_id = (chunk.token_ids[-1] + 1) % self._vocab_size
        return Drawn(token_id, 0.0 if chunk.sampling.logprobs else None)

    def begin(self, chunks: Sequence[Chunk]) -> None:
        """Nothing: it computes where it is asked (see `Engine.begin`)."""

    def share(self, percent: int, num_peers: int) -> None:
        """It needs nothing."""

    @property
    def computes_on(self) -> str:
        return ""

    def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        """Nothing was written, so nothing is copied."""
