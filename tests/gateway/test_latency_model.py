"""The two curves of the paper, from few, equal, many and noisy points."""

import math
import random

import pytest

from gateway.latency_model import Point, fit


def points_of(a: float, b: float, c: float, shares: list[float]) -> list[Point]:
    """As a pool would show them whose latency is a / (share - c * load) + b."""
    return [Point(s, load, a / (s - c * load) + b) for s in shares for load in (1, 2)]


def test_one_point_is_enough() -> None:
    """
    The curve goes through it, and half the share costs more, as the guess has it.
    """
    curve = fit([Point(0.5, 1.0, 0.2)], constant=0.4)

    assert curve(0.5, 1.0) == pytest.approx(0.2, rel=0.05)
    assert 0.2 < curve(0.25, 1.0) < 0.4


def test_equal_points_do_no_harm() -> None:
    """
    However often the same share was seen, another one is as the guess has it.
    """
    once = fit([Point(0.5, 1.0, 0.2)], constant=0.4)
    often = fit([Point(0.5, 1.0, 0.2)] * 24, constant=0.4)

    assert often(0.3, 1.0) == pytest.approx(once(0.3, 1.0), rel=0.1)


@pytest.mark.parametrize(("a", "b", "c"), [(0.1, 0.02, 0.0), (0.05, 0.1, 0.1)])
def test_seen_shares_replace_the_guess(a: float, b: float, c: float) -> None:
    """
    With several shares and loads the curve is that of the pool, between them and nearby.
    """
    curve = fit(points_of(a, b, c, [0.3, 0.4, 0.5, 0.6, 0.7]), constant=0.4)

    for share, load in ((0.45, 1.0), (0.55, 2.0), (0.8, 1.0)):
        expected = a / (share - c * load) + b
        assert curve(share, load) == pytest.approx(expected, rel=0.15)


def test_late_points_count_more() -> None:
    """
    After the pool has changed its curve follows.
    """
    before, after = points_of(0.1, 0, 0, [0.3, 0.7]), points_of(0.4, 0, 0, [0.3, 0.7])

    curve = fit(before * 4 + after * 4, constant=0.1)

    assert curve(0.5, 1.0) > 0.6


@pytest.mark.parametrize("seed", range(20))
def test_noise_never_turns_it_round(seed: int) -> None:
    """
    Whatever was seen, more of the machine is never expected to be slower, and no latency
    to be negative.
    """
    chance = random.Random(seed)
    points = [
        Point(chance.uniform(0.2, 0.8), chance.uniform(0, 9), chance.expovariate(1))
        for _ in range(chance.randint(1, 24))
    ]

    curve = fit(points, constant=chance.random())

    seconds = [curve(share / 10, points[-1].load) for share in range(1, 10)]
    assert seconds == sorted(seconds, reverse=True)
    assert min(seconds) >= 0


def test_a_share_that_arriving_prompts_need_has_no_end() -> None:
    """
    At λ the queue grows without end, and the curve says so.
    """
    curve = fit(points_of(0.05, 0.1, 0.1, [0.3, 0.5, 0.7]), constant=0.1)

    assert curve.c > 0
    assert curve(curve.c * 2, 2.0) == math.inf
