"""The running softmax of attention, block of keys after block; for kernels of numba.

Milakov & Gimelshein 2018 (arXiv 1805.02867, algorithm 3). All in float32; the weights it
gives are of the dtype of the values that they are for.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from engine.compiled import compiled
from engine.elementwise import exponential, narrow
from engine.emitter import INT, LANES, VECTOR, Emitter
from engine.vectors import Part, greatest_of, start_of

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
    scores: Array,
    weights: Array,
    sight: Sight,
    keys: tuple[int, float],
    running: Running,
) -> None:
    """Make scores into weights of the running softmax; zero for what is not seen.

    Keys are (how many, the factor that their scores still need).
    """
    num_keys, scaling = keys
    num_rows, stride = sight.num_tokens * sight.group, scores.shape[1]
    # In two passes: in each one a row need not wait for the row before.
    for row in range(num_rows):
        first, end = _seen_of(sight, row, num_keys)
        if first < end:
            at = row * stride + first
            peak = greatest_of(start_of(scores), at, end - first) * scaling
            before = running.greatest[row]
            greatest = before if before > peak else peak  # NaN, if that is the peak
            running.greatest[row] = greatest
            if -np.inf < before != greatest:
                _shrink(running, row, exponential(before - greatest))
    packed = 4 // weights.itemsize
    for row in range(num_rows):
        greatest = running.greatest[row]
        if greatest == -np.inf:
            weights[row, :num_keys] = 0  # exp(-inf + inf) is no weight
            continue
        first, end = _seen_of(sight, row, num_keys)
        running.total[row] += _weigh_row(
            Part(start_of(scores), row * stride, 0),
            Part(start_of(weights), row * stride // packed, 0),
            (first, end, num_keys),
            scaling,
            greatest,
        )


@compiled()
def _seen_of(sight: Sight, row: int, num_keys: int) -> tuple[int, int]:
    """Which keys at hand a row sees: from, to (not included)."""
    first, end = seen_by(sight, row // sight.group)
    return min(first, num_keys), min(end, num_keys)


@intrinsic
def _weigh_row(
    typing: Any, scores: Any, weights: Any, keys: Any, scaling: Any, greatest: Any
) -> Any:
    """Write exp(score x scaling - greatest) of each key, and give their sum.

    Keys are (from, to, all): those before `from` and from `to` on weigh nothing.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        emit = Emitter(context, builder, signature)
        from_, to = emit.part(0, arguments[0]), emit.part(1, arguments[1])
        first, end, count = (builder.extract_value(arguments[2], i) for i in range(3))
        factor = emit.splat(arguments[3], VECTOR)
        highest = emit.splat(builder.fneg(arguments[4]), VECTOR)
        (total,) = emit.sums(1)
        is_pair = signature.args[1].types[0].dtype != types.float32
        width = INT(2 if is_pair else 1)

        def weigh(at: Any, mask: Any, *, is_seen: bool = False) -> None:
            score = emit.load(emit.at(from_, INT(0), at), mask)
            weight = emit.exponential(emit.multiply_add(score, factor, highest))
            if not is_seen:
                seen = builder.and_(
                    emit.mask(builder.sub(end, at)),
                    builder.not_(emit.mask(builder.sub(first, at))),
                )
                weight = builder.select(seen, weight, emit.zeros)
            builder.store(builder.fadd(builder.load(total), weight), total)
            put = emit.store_rounded if is_pair else emit.store
            put(weight, emit.at(to, INT(0), builder.sdiv(at, width)), mask)

        def whole_vectors(number: Any) -> Any:
            return builder.sub(number, builder.srem(number, INT(LANES)))

        # Vectors that are seen in part or not, then whole ones, then such as before.
        whole = whole_vectors(count)
        until = emit.least(whole_vectors(end), whole)
        since = emit.least(whole_vectors(builder.add(first, INT(LANES - 1))), until)
        for begin, stop, is_seen in (
            (INT(0), since, False),
            (since, until, True),
            (until, whole, False),
        ):
            steps = cgutils.for_range_slice(builder, begin, stop, INT(LANES), inc=True)
            with steps as (at, _):
                weigh(at, None, is_seen=is_seen)
        rest = builder.sub(count, whole)
        with builder.if_then(builder.icmp_signed("!=", rest, INT(0))):
            weigh(whole, emit.mask(rest))
        return emit.sum_of(builder.load(total))

    return types.float32(scores, weights, keys, scaling, greatest), generate


@compiled()
def _shrink(running: Running, row: int, factor: float) -> None:
    running.total[row] *= factor
    for d in range(running.answer.shape[1]):
        running.answer[row, d] *= factor


@compiled()
def finish(running: Running, output: Array) -> None:
    count, group, dim = output.shape
    for token in range(count):
        for head in range(group):
            row = token * group + head
            for d in range(dim):
                running.answer[row, d] /= running.total[row]
            narrow(running.answer[row], output[token, head])
