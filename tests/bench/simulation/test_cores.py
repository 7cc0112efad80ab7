"""Simulated cores: what a share is, while both phases compute."""

from dataclasses import replace
from itertools import pairwise
from statistics import fmean

import pytest
from simulating import COSTS, DEVICE, design, request

from bench.simulation.control import Shares
from bench.simulation.cores import CORE
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
    Three quarters of two cores are one for half of the time, and two for the other.
    """
    gaps, prompts = beside(Shares(75, 25))

    on_average = seconds(LENGTH, ONE) / 1.5
    assert fmean(prompts) == pytest.approx(on_average, rel=0.1)
    assert fmean(gaps) == pytest.approx(step_seconds(gaps) / 0.5, rel=0.1)


@pytest.mark.parametrize("shares", [(100, 10), (75, 25), (30, 70)])
def test_a_prompt_s_step_pauses_for_streams_that_have_a_share(shares: Shares) -> None:
    """
    It has what they leave, at each time: no gap is as long as a prompt's step.
    """
    gaps, prompts = beside(Shares(*shares))

    rest = max(1.0, CORE / (2 * shares[1]))
    assert max(gaps) == pytest.approx(rest * step_seconds(gaps), rel=0.2)
    assert max(gaps) < seconds(LENGTH, TWO)
    cores = 2 * min(shares[0], CORE - shares[1]) / CORE
    assert fmean(prompts) == pytest.approx(seconds(LENGTH, ONE) / cores, rel=0.15)


def test_for_who_may_have_everything_no_step_pauses() -> None:
    """
    Steps of both phases take turns on both cores, as they are.
    """
    gaps, prompts = beside(Shares(100, 100))

    assert max(gaps) > seconds(LENGTH, TWO)
    turn = seconds(LENGTH, TWO) + CORES.pace(decoding(1, 90), TWO).first
    assert fmean(prompts) == pytest.approx(turn, rel=0.02)
