"""Capacity of a pool, and how many pools a rate needs."""

import pytest
from simulating import SLOW, design

from bench.measures import SLO
from bench.simulation.design import Kind
from bench.simulation.fleet import WANTED, at_work, attainment, capacity, needed
from bench.simulation.loads import Lengths, at_rate
from bench.simulation.pool import Pool, open_loop
from bench.simulation.worker import Rules
from bench.workload import poisson

SMALL = Rules(max_num_batched_tokens=256, max_num_seqs=32)
UNIT = poisson(Lengths(60, 10, spread=0.5).planned(100, "unit"), 1.0, "unit")
LIMITS = SLO(ttft=1.0, tpot=0.1)


def small(kind: Kind) -> Pool:
    return Pool(design(kind, SLOW, prefill=SMALL, decode=SMALL))


def test_lengths_have_the_mean_and_the_spread_asked_for() -> None:
    """
    Without a spread all are alike; the same seed draws the same.
    """
    planned = Lengths(500, 100, spread=0.5).planned(4000, 1)
    inputs = [len(each.prompt) for each in planned]

    mean = sum(inputs) / len(inputs)
    deviation = (sum((n - mean) ** 2 for n in inputs) / len(inputs)) ** 0.5
    assert mean == pytest.approx(500, rel=0.05)
    assert deviation / mean == pytest.approx(0.5, rel=0.1)
    assert planned == Lengths(500, 100, spread=0.5).planned(4000, 1)
    alike = Lengths(7, 3).planned(5, 0)
    assert {(len(each.prompt), each.max_tokens) for each in alike} == {(7, 3)}


def test_a_load_keeps_its_pattern_at_another_rate() -> None:
    """
    Times shrink alike, and are filled up with the same again.
    """
    once, longer = at_rate(UNIT, 10.0), at_rate(UNIT, 10.0, seconds=25.0)

    assert once[-1].at == pytest.approx(10.0)
    assert once[0].at / once[-1].at == pytest.approx(UNIT[0].at / UNIT[-1].at)
    assert longer[: len(once)] == once
    assert len(longer) == 3 * len(once)
    assert longer[len(once)].at == pytest.approx(10.0 + once[0].at)
    together = Lengths(7, 3).planned(5, 0)
    assert at_rate(together, 10.0) == together


@pytest.mark.parametrize("kind", ["semi", "fused", "disaggregated"])
def test_capacity_is_where_slos_begin_to_fail(kind: Kind) -> None:
    """
    There enough requests meet them, and at a little more too few do.
    """
    asked = small(kind).design

    most = capacity(asked, UNIT, LIMITS)

    below, above = (
        attainment(at_work(asked, UNIT, rate)[1], LIMITS) for rate in (most, 1.1 * most)
    )
    assert below >= WANTED > above


def test_slos_that_nothing_meets_have_no_answer() -> None:
    """
    A limit below the time of one prompt alone is no matter of how many pools.
    """
    hopeless = SLO(ttft=0.001)

    assert capacity(small("semi").design, UNIT, hopeless) == 0
    assert needed(small("semi").design, UNIT, hopeless, 100.0) is None


def test_ten_thousand_pools_take_no_more_work_than_ten() -> None:
    """
    One pool is simulated, at its part of the rate, however many there are.
    """
    asked = small("semi").design
    most = capacity(asked, UNIT, LIMITS)

    few = needed(asked, UNIT, LIMITS, 9.5 * most)
    many = needed(asked, UNIT, LIMITS, 9_999.5 * most)

    assert few is not None
    assert many is not None
    assert (few.num_pools, many.num_pools) == (10, 10_000)
    assert many.rate <= most
    assert many.attainment >= WANTED
    assert many.pool.num_events <= 1.2 * few.pool.num_events


@pytest.mark.parametrize("kind", ["semi", "fused", "disaggregated"])
def test_a_fleet_simulated_whole_holds_what_was_promised(kind: Kind) -> None:
    """
    Four pools behind a router that looks at load take four times what one takes, and no
    worse; half of the pools would not do.
    """
    asked = small(kind).design
    rate = 3.5 * capacity(asked, UNIT, LIMITS)
    load = at_rate(poisson(4 * UNIT, 1.0, "whole"), rate, seconds=40.0)

    answer = needed(asked, UNIT, LIMITS, rate)
    assert answer is not None
    whole, half = (
        attainment(open_loop([small(kind) for _ in range(num_pools)], load), LIMITS)
        for num_pools in (answer.num_pools, answer.num_pools // 2)
    )

    assert answer.num_pools == 4
    assert whole >= answer.attainment - 0.02
    assert half < WANTED
