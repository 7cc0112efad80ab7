"""One output token for each chunk that asks for one, with what it asks to know of it."""

from collections.abc import Callable, Sequence

from torch import Tensor

from engine.interface import Chunk, Drawn
from engine.sampler import log_probabilities, sample
from protocol.sampling import SamplingParams

Sampler = Callable[[Tensor, Sequence[SamplingParams], Sequence[int]], list[int]]


def draw(
    logits: Tensor, chunks: Sequence[Chunk], sampler: Sampler = sample
) -> list[Drawn | None]:
    """One entry per chunk, None where it draws nothing.

    logits [number of chunks that draw, vocab_size]; `sampler` as `engine.sampler.sample`.
    """
    drawing = [chunk for chunk in chunks if chunk.sample_index is not None]
    tokens = sampler(
        logits,
        [chunk.sampling for chunk in drawing],
        [chunk.sample_index or 0 for chunk in drawing],
    )
    drawn = [Drawn(token) for token in tokens]
    asking = [row for row, chunk in enumerate(drawing) if chunk.sampling.logprobs]
    if asking:
        logprobs = log_probabilities(logits[asking], [tokens[row] for row in asking])
        for row, logprob in zip(asking, logprobs, strict=True):
            drawn[row] = Drawn(tokens[row], logprob)
    rest = iter(drawn)
    return [None if chunk.sample_index is None else next(rest) for chunk in chunks]
