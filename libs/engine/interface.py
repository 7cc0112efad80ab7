"""What a worker needs from a model: one synchronous step over chunks of sequences."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from protocol.sampling import SamplingParams


@dataclass(frozen=True, slots=True)
class Chunk:
    """The tokens of one sequence that a step computes.

    There is no prefill phase and no decode phase here: a prompt is a long chunk and a
    decoding sequence a chunk of one token. Token i of the chunk has position
    `num_computed_tokens + i`, and its K/V goes to slot
    `position % block_size` of block `block_table[position // block_size]`.
    """

    token_ids: Sequence[int]
    num_computed_tokens: int  # tokens before this chunk, whose K/V lie in the blocks
    block_table: Sequence[int]
    sampling: SamplingParams
    sample_index: int | None  # which output token to draw; None: the chunk ends early


@dataclass(frozen=True, slots=True)
class Drawn:
    """An output token."""

    token_id: int
    logprob: float | None = None  # natural logarithm; where `sampling` asks for it


Ending = Callable[[], list[Drawn | None]]


class Engine(Protocol):
    """A model. Pure, synchronous, knows no network and keeps nothing of a sequence."""

    def turn(self, *, is_long: bool = False) -> AbstractContextManager[object]:
        """Waits, perhaps, until the machine is free for one step, to be computed before
        the block ends.

        A long one begins on what is free, and pauses for those that go first.
        """
        ...

    def step(self, chunks: Sequence[Chunk]) -> list[Drawn | None]:
        """Compute all chunks in one pass and write their K/V.

        Returns one entry per chunk: what was drawn, or None where `sample_index` is.
        """
        ...

    def begin(self, chunks: Sequence[Chunk]) -> Ending | None:
        """Begin a step and do not wait for it; its end is asked for before anything else.

        None, and nothing begun, where steps compute on the thread that asks for them.
        """
        ...

    def share(self, percent: int, num_peers: int) -> None:
        """From the next step on compute on that much of the machine, together with so
        many workers, this one included."""
        ...

    @property
    def computes_on(self) -> str:
        """What that is, in words."""
        ...

    def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        """Copy whole KV blocks, (from, to): copy on write, before the first write."""
        ...
