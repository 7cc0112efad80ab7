"""The running softmax of attention, block of keys after block; for kernels of numba.

Milakov & Gimelshein 2018 (arXiv 1805.02867, algorithm 3). All in float32; the weights it
gives are of the dtype of the values that they are for.
"""

from typing import Any, NamedTuple

import numpy as np

from engine.compiled import compiled
from engine.elementwise import exponentials, narrow
from engine.vectors import greatest_of, start_of

Array = Any


class Sight(NamedTuple):
    """Which of the keys at hand, numbered from zero, the rows of a tile see."""

    position: int  # of the first token, counted from the first key at hand
    num_tokens: int
    group: int  # rows of each token
    window: int


class Running(NamedTuple):
    """A tile's softmax so far, one entry per query row; all float32."""

    greatest: Array  # [rows] greatest score seen
    total: Array  # [rows] sum of exp(score - greatest)
    answer: Array  # [rows, v_head_dim] sum of exp(score - greatest) x value


@compiled()
def seen_by(sight: Sight, token: int) -> tuple[int, int]:
    """Which keys a token of the tile sees: from, to (not included)."""
    end = sight.position + token + 1
    return (max(0, end - sight.window) if sight.window > 0 else 0), end


@compiled()
def weigh(
    scores: Array, weights: Array, sight: Sight, num_keys: int, running: Running
) -> None:
    """Make scores into weights of the running softmax; zero for what is not seen."""
    for row in range(sight.num_tokens * sight.group):
        first, end = seen_by(sight, row // sight.group)
        first, end = min(first, num_keys), min(end, num_keys)
        scores[row, :first] = 0.0
        scores[row, end:num_keys] = 0.0
        if first < end:
            _absorb(scores[row, first:end], running, row)
        narrow(scores[row, :num_keys], weights[row, :num_keys])


@compiled()
def _absorb(scores: Array, running: Running, row: int) -> None:
    """Take more scores into a query row's softmax, and make them its weights."""
    before, peak = (
        running.greatest[row],
        greatest_of(start_of(scores), 0, scores.shape[0]),
    )
    if before == -np.inf and peak == -np.inf:
        scores[:] = 0.0  # exp(-inf + inf) is no weight
        return
    greatest = max(before, peak)
    running.greatest[row] = greatest
    exponentials(scores, greatest)
    if before != greatest:
        shrink = np.exp(before - greatest)
        running.total[row] *= shrink
        for d in range(running.answer.shape[1]):
            running.answer[row, d] *= shrink
    total = np.float32(0.0)
    for j in range(scores.shape[0]):
        total += scores[j]
    running.total[row] += total


@compiled()
def finish(running: Running, output: Array) -> None:
    count, group, dim = output.shape
    for token in range(count):
        for head in range(group):
            row = token * group + head
            for d in range(dim):
                running.answer[row, d] /= running.total[row]
            narrow(running.answer[row], output[token, head])
