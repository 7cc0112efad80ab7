"""Whether a pool does better than before, from a few windows."""

import pytest

from gateway.pressure import direction, forecast, is_better, is_steady, piles_up


@pytest.mark.parametrize(
    ("pressures", "expected"),
    [
        ([1.0, 2.0, 3.0], 1),
        ([3.0, 2.0, 1.0], -1),
        ([1.0, 1.02, 1.05], 0),
        ([1.0, 3.0, 2.0], 0),
        ([2.0, 3.0, 1.0], 0),
        ([5.0], 0),
        ([0.0, 0.0], 0),
    ],
)
def test_a_direction_is_in_every_step(pressures: list[float], expected: int) -> None:
    """
    What goes up and down is noise, and so is a little.
    """
    assert direction(pressures) == expected


def test_what_varies_around_a_level_is_steady() -> None:
    """
    A jump is not, nor what has begun to grow.
    """
    spells = [[0.9, 1.1, 1.0], [1.0], [0.3, 0.28, 2.6, 7.5]]

    assert [is_steady(each) for each in spells] == [True, True, False]


@pytest.mark.parametrize(
    ("flows", "expected"),
    [
        ([(80, 60), (83, 55), (90, 52), (85, 66)], True),
        ([(80, 79), (83, 80), (90, 88), (85, 83)], False),
        ([(120, 60), (83, 84), (120, 60), (120, 60)], False),
        ([(4, 2), (5, 4), (4, 3)], False),
        ([(0, 0), (0, 0)], False),
    ],
)
def test_streams_pile_up_where_always_more_begin(
    flows: list[tuple[int, int]], expected: bool
) -> None:
    """
    By much more than chance makes of so many, and without a window in which they do not.
    """
    assert piles_up(flows) == expected


def test_a_queue_that_grows_is_expected_to_grow() -> None:
    """
    From the last window on, over the one between and half of those to come.
    """
    grown = forecast([1.0, 2.0, 3.0], 3)

    assert grown == 3.0 + 1.0 * (1 + 2)
    assert forecast([2.0, 4.0, 3.0], 3) == 3.0


@pytest.mark.parametrize(
    ("later", "earlier", "expected"),
    [
        ([1.0, 1.1, 1.0], [2.0, 1.9, 2.0], True),  # steady and lower
        ([2.0, 1.9, 2.0], [2.0, 1.9, 2.0], False),  # no difference
        ([25.0, 23.0, 20.0], [16.0, 19.0, 22.0, 25.0], True),  # it shrinks again
        ([40.0, 44.0, 48.0], [16.0, 19.0, 22.0, 25.0], False),  # it grows faster
        ([4.6, 5.5, 2.9], [1.4, 1.9, 2.7, 1.9], False),  # noise at a higher level
    ],
)
def test_what_would_have_been_is_compared(
    later: list[float], earlier: list[float], expected: bool
) -> None:
    """
    A level that a queue of before has left is no fault of who works it off.
    """
    assert is_better(later, earlier) is expected
