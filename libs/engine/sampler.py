"""From logits to token ids. Knows parameters and rows, no sequence.

A draw depends on the row, its parameters and (seed, index) alone: not on the batch, the
order of rows, or anything drawn before. So a step that is run again, by whomever, gives
the same token.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from protocol.sampling import SamplingParams

Floats = NDArray[np.float64]
Words = NDArray[np.uint64]

_LEVELS = 64  # counter values reserved for one draw; a vocabulary's tree needs < 32


def sample(
    logits: Tensor, params: Sequence[SamplingParams], indices: Sequence[int]
) -> list[int]:
    """Choose one token for each row.

    logits [num_rows, vocab_size] of any float dtype, left as they are; indices say
    which output token of its sequence each row is. In vLLM's order: min_tokens,
    temperature, min_p, top_k, top_p. Of equal logits greedy takes the lowest id.
    """
    if not params:
        return []
    logits = _without_early_stops(logits, params, indices)
    tokens = _greatest(logits)
    random = [row for row, p in enumerate(params) if p.temperature > 0.0]
    if random:
        drawn = _draw_rows(
            logits[random],
            [params[row] for row in random],
            [indices[r] for r in random],
        )
        for row, token in zip(random, drawn, strict=True):
            tokens[row] = token
    return tokens


def log_probabilities(logits: Tensor, token_ids: Sequence[int]) -> list[float]:
    """How likely the model finds each row's token, as a natural logarithm.

    logits [num_rows, vocab_size] of any float dtype. As OpenAI and vLLM define it:
    under the model's own distribution, whatever `sample` does to it.
    """
    logprobs = logits.log_softmax(dim=-1, dtype=torch.float32)
    chosen: list[float] = logprobs[range(len(token_ids)), token_ids].tolist()
    return chosen


def _greatest(logits: Tensor) -> list[int]:
    """Each row's greatest logit, the first of equal ones."""
    if logits.dtype == torch.bfloat16:
        # As integers, positive numbers' bits have their order, above all negative ones'.
        bits = logits.view(torch.int16).numpy()
        greatest: list[int] = bits.argmax(axis=-1).tolist()
        if all(bits[row, token] > 0 for row, token in enumerate(greatest)):
            return greatest
    # As torch.argmax, which takes twenty times as long for bfloat16.
    tokens: list[int] = logits.float().numpy().argmax(axis=-1).tolist()
    return tokens


def uniform(seeds: Words, indices: Words, level: int) -> Floats:
    """Numbers in [0, 1) that depend on (seed, index, level) alone, 53 bits each.

    SplitMix64 (Steele, Lea & Flood 2014) read as a counter-based generator: its n-th
    output is a hash of seed + n x gamma. The seed is hashed first, so that the streams
    of neighbouring seeds do not run beside each other.
    """
    counter = indices * np.uint64(_LEVELS) + np.uint64(level + 1)
    words = _mix(_mix(seeds) + counter * np.uint64(0x9E3779B97F4A7C15))
    numbers: Floats = (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return numbers


def _mix(z: Words) -> Words:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _without_early_stops(
    logits: Tensor, params: Sequence[SamplingParams], indices: Sequence[int]
) -> Tensor:
    """Rule out the tokens that would end a sequence before its `min_tokens`."""
    banned = [
        (row, token)
        for row, (p, index) in enumerate(zip(params, indices, strict=True))
        if index < p.min_tokens
        for token in p.stop_token_ids
        if token < logits.shape[1]
    ]
    if not banned:
        return logits
    rows, tokens = torch.tensor(banned).unbind(1)
    logits = logits.clone()
    logits[rows, tokens] = -torch.inf
    return logits


def _draw_rows(
    logits: Tensor, params: Sequence[SamplingParams], indices: Sequence[int]
) -> list[int]:
    weights = _weights(logits, [p.temperature for p in params])
    for row, p in zip(weights, params, strict=True):
        _restrict(row, p)
    seeds = np.array([p.seed for p in params], np.uint64)
    return _descend(weights, seeds, np.array(indices, np.uint64))


def _weights(logits: Tensor, temperatures: Sequence[float]) -> Floats:
    """exp((logit - greatest) / temperature): probabilities up to a factor."""
    weights: Floats = logits.double().numpy()
    # Subtracted before the division, which then cannot overflow at any temperature.
    weights -= weights.max(axis=1, keepdims=True)
    weights /= np.array(temperatures)[:, np.newaxis]
    return np.exp(weights, out=weights)


def _restrict(weights: Floats, params: SamplingParams) -> None:
    """Zero, in place, what min_p, top_k and top_p rule out of one row [vocab_size].

    The greatest weight is 1, so min_p compares with the weights themselves. Tokens as
    likely as the last one kept are kept too: which of them is drawn is chance's matter,
    not the sort's.
    """
    if params.min_p > 0.0:
        weights[weights < params.min_p] = 0.0
    if 0 < params.top_k < len(weights):
        place = len(weights) - params.top_k
        weights[weights < np.partition(weights, place)[place]] = 0.0
    if params.top_p < 1.0:
        weights[weights < _nucleus_floor(weights, params.top_p)] = 0.0


def _nucleus_floor(weights: Floats, top_p: float) -> float:
    """The smallest weight in the smallest set that holds `top_p` of the whole."""
    descending = np.sort(weights)[::-1]
    held = descending.cumsum()
    return float(descending[np.searchsorted(held, top_p * held[-1])])


def _descend(weights: Floats, seeds: Words, indices: Words) -> list[int]:
    """Draw by the inverse of the cumulative weights, [num_rows, vocab_size].

    Halves the vocabulary until one token is left, with a number of its own at every
    level. One number for the whole search would fall between two tokens' bounds of two
    batches far more often: rounding moves thousands of bounds, and this meets only
    log2(vocab_size) of them.
    """
    num_rows, vocab_size = weights.shape
    cumulative = np.zeros((num_rows, vocab_size + 1))
    weights.cumsum(axis=1, out=cumulative[:, 1:])
    rows = np.arange(num_rows)
    low, high = np.zeros(num_rows, np.int64), np.full(num_rows, vocab_size)
    for level in range(vocab_size.bit_length()):
        middle = (low + high) // 2
        below, split, above = (cumulative[rows, at] for at in (low, middle, high))
        is_left = uniform(seeds, indices, level) * (above - below) < split - below
        # A span of one token has middle == low: nothing lies left of it.
        low, high = np.where(is_left, low, middle), np.where(is_left, middle, high)
    return [int(token) for token in low]
