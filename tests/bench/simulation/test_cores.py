"""Simulated cores: what a share is, while both phases compute."""

from dataclasses import replace
from itertools import pairwise
from statistics import fmean

import pytest
from simulating import COSTS, DEVICE, design, request

from bench.simulation.control import Shares
from bench.simulation.costs import ALONE, Share, decoding, prompt
from bench.simulation.pool import Pool, open_loop
from bench.simulation.worker import Rules

CORES = replace(COSTS, device=DEVICE.model_copy(update={"num_cores": 2}))
ONE, TWO = Share(0.5, is_alone=False), ALONE
NUM_PROMPTS, LENGTH = 12, 200


def seconds(tokens: int, share: Share) -> float:
    return CORES.pace(prompt(tokens, 0), share).first


def step_seconds(gaps: list[float]) -> float:
    """Of the stream on one core, in the middle of its gaps."""
    num_before = 1.0 / CORES.pace(decoding(1, 90), TWO).first  # in its first second
    context = round(10 + num_before + len(gaps) / 2)
    return CORES.pace(decoding(1, context), ONE).first


def beside(shares: Shares) -> tuple[list[float], list[float]]:
    """A stream's gaps while prompts are computed one by one, and these prompts' times."""
    pool = Pool(
        design(
            "semi",
            CORES,
            shares=shares,
            prefill=Rules(max_num_batched_tokens=LENGTH),
        )
    )
    prompts = [request(LENGTH, 1, at=1.0)] * NUM_PROMPTS
    outcomes = open_loop([pool], [request(10, 4000), *prompts])

    stream, *asked = sorted(outcomes, key=lambda each: -len(each.times))
    ends = sorted(each.times[0] for each in asked)
    gaps = [b - a for a, b in pairwise(stream.times) if ends[0] <= a and b <= ends[-1]]
    return gaps, [b - a for a, b in pairwise(ends)]


def test_halves_of_two_cores_compute_side_by_side() -> None:
    """
    Each step has one core, and waits for nobody.
    """
    gaps, prompts = beside(Shares(50, 50))

    assert prompts == pytest.approx([seconds(LENGTH, ONE)] * (NUM_PROMPTS - 1))
    assert gaps == pytest.approx([step_seconds(gaps)] * len(gaps), rel=0.1)


def test_who_has_less_than_a_core_rests_after_each_step() -> None:
    """
    A fifth of two cores is one core in two fifths of the time.
    """
    gaps, _ = beside(Shares(50, 20))

    assert fmean(gaps) == pytest.approx(step_seconds(gaps) / 0.4, rel=0.1)


def test_a_share_between_whole_cores_is_more_threads_now_and_then() -> None:
    """
    Three quarters of two cores are one for half of the time, and two for the other; with
    two it waits for a step of the stream, which then waits for all of the prompt's.
    """
    gaps, prompts = beside(Shares(75, 25))

    slow = [each for each in prompts if each == pytest.approx(seconds(LENGTH, ONE))]
    fast = [each for each in prompts if each not in slow]
    on_one = (len(slow) + 1) * seconds(LENGTH, ONE)  # the first one is between none
    on_two = len(fast) * seconds(LENGTH, TWO)  # the rest of their time they wait
    assert on_one == pytest.approx(on_two, abs=seconds(LENGTH, ONE))
    assert all(each < seconds(LENGTH, ONE) for each in fast)
    assert max(gaps) > seconds(LENGTH, TWO)
