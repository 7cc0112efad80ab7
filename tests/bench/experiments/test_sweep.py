"""Which rates are asked: few, and two neighbours around the answer."""

import pytest

from bench.experiments.sweep import (
    MAX_POINTS,
    WANTED,
    Endless,
    Listed,
    highest_held,
    listed,
    next_rung,
)
from mesh.errors import ConfigurationError


def swept(capacity: int, first: int, leap: int) -> dict[int, float]:
    """The attainment at each rung asked, of a system that holds up to its capacity."""
    tried: dict[int, float] = {}
    while (rung := next_rung(tried, first, leap)) is not None:
        tried[rung] = 1.0 if rung <= capacity else 0.5
    return tried


@pytest.mark.parametrize("capacity", range(-3, 10))
def test_the_highest_rung_that_holds_is_found(capacity: int) -> None:
    """
    Wherever it is: it and its failing neighbour are both asked, in a few points.
    """
    tried = swept(capacity, first=2, leap=4)

    assert highest_held(tried) == capacity
    assert capacity + 1 in tried
    assert len(tried) <= 5


def test_a_search_without_an_answer_ends() -> None:
    """
    A system that holds at no rate, or at any, is given up after so many points.
    """
    never, always = swept(-1000, first=0, leap=4), swept(1000, first=0, leap=4)

    assert len(never) == len(always) == MAX_POINTS
    assert highest_held(never) is None
    assert highest_held(always) == max(always)


def test_exactly_enough_is_enough() -> None:
    """
    Nine of ten requests are 90 %.
    """
    assert highest_held({0: 1.0, 1: 9 / 10, 2: 0.89}) == 1
    assert WANTED == 9 / 10


def test_a_person_s_rates_are_asked_until_one_fails() -> None:
    """
    In their order, rising, none twice; the ladder ends where they end.
    """
    ladder = Listed(listed("4,1,2,2"))

    assert ladder.rates == (1.0, 2.0, 4.0)
    assert ladder.near(3.0) == 0
    assert (ladder.rate(0), ladder.rate(2)) == (1.0, 4.0)
    assert ladder.rate(3) is ladder.rate(-1) is None
    assert list(swept(0, ladder.near(3.0), ladder.leap)) == [0, 1]


def test_our_own_rates_are_the_same_for_everyone() -> None:
    """
    Powers of 1.1: systems that begin elsewhere are asked at rates that can be compared.
    """
    ladder = Endless()

    assert ladder.near(10.0) == ladder.near(10.2) == 24
    assert [ladder.rate(rung) for rung in (-1, 0, 1, 24)] == [0.909, 1.0, 1.1, 9.85]


@pytest.mark.parametrize("text", ["fast", "0", "1,-2"])
def test_rates_that_are_none(text: str) -> None:
    """
    Are named.
    """
    with pytest.raises(ConfigurationError, match=text):
        listed(text)
