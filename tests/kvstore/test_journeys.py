"""Whatever happens to two stores and between them, no sequence is lost, nor kept twice."""

from collections import Counter
from functools import cache
from random import Random

import pytest
from journeys import Journeys

NUM_OPERATIONS = 300
SEEDS = range(40)


@cache
def walked(seed: int) -> Counter[str]:
    """What happened on the way from empty stores to empty stores."""
    journeys = Journeys(Random(seed))
    journeys.run(NUM_OPERATIONS)
    journeys.end()
    return journeys.happened


@pytest.mark.parametrize("seed", SEEDS)
def test_every_sequence_arrives(seed: int) -> None:
    """
    Each request has an end, on K/V of its own prefix, and no block is held after it.
    """
    happened = walked(seed)

    assert happened["moved"]


@pytest.mark.parametrize(
    "event", ["cut", "lost", "gone", "latest", "waited", "preempted"]
)
def test_everything_happens(event: str) -> None:
    """
    The walks are worth something: all that is rare happens on one of them at least.
    """
    happened = sum((walked(seed) for seed in SEEDS), Counter[str]())

    assert happened[event] > 0
