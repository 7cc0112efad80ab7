"""Anything that workers and clients may do to a store, in any order.

Nobody may ever build on anything but its own prefix, whoever died, hung or was preempted
meanwhile, and everything that was asked for comes to an end.
"""

from collections import Counter
from functools import cache
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from walking import Walk

NUM_OPERATIONS = 400
SEEDS = range(40)


@cache
def walked(seed: int) -> Counter[str]:
    """What happened on the way from an empty store to an empty store."""
    walk = Walk(Random(seed))
    walk.run(NUM_OPERATIONS)
    walk.end()
    return walk.happened


@pytest.mark.parametrize("seed", SEEDS)
def test_nobody_builds_on_foreign_memory(seed: int) -> None:
    """
    Whatever happens, K/V is its reader's own prefix, and every request has an end.
    """
    happened = walked(seed)

    assert happened["hit"]


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(chance=st.randoms(use_true_random=False), num_operations=st.integers(1, 80))
def test_no_short_way_breaks_it(chance: Random, num_operations: int) -> None:
    """
    The same for short walks, which a failure makes as short as it can be.
    """
    walk = Walk(chance)

    walk.run(num_operations)
    walk.end()


@pytest.mark.parametrize(
    "event",
    [
        "waited",
        "hit",
        "forked",
        "copied",
        "evicted",
        "preempted",
        "stalled",
        "quarantined",
        "noted",
        "called",
        "outlived",
    ],
)
def test_everything_happens(event: str) -> None:
    """
    The walks are worth something: all that is rare happens on one of them at least.
    """
    happened = sum((walked(seed) for seed in SEEDS), Counter[str]())

    assert happened[event] > 0


def test_a_walk_can_be_repeated() -> None:
    """
    A seed that fails fails again, until it is understood.
    """
    walks = [Walk(Random(1)), Walk(Random(1))]

    for walk in walks:
        walk.run(100)

    assert walks[0].happened == walks[1].happened
