"""An engine that counts upwards: enough model to test everything that is no model."""

from collections.abc import Sequence

from engine.interface import Chunk


class CountingEngine:
    """Answers each sequence's last token plus one, and touches no memory."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size

    def step(self, chunks: Sequence[Chunk]) -> list[int | None]:
        return [
            None
            if chunk.sample_index is None
            else (chunk.token_ids[-1] + 1) % self._vocab_size
            for chunk in chunks
        ]

    def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        """Nothing was written, so nothing is copied."""
