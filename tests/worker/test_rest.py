"""Shares of less than a core: a worker rests after its steps."""

import pytest

from kv.operations import EVERYTHING, Part
from worker.rest import LONGEST_SECONDS, rest_seconds


@pytest.mark.parametrize(
    ("part", "cores", "rest"),
    [
        (Part(20, 1), 2, 0.15),  # two fifths of a core: 0.1 s of 0.25
        (Part(25, 1), 2, 0.1),
        (Part(25, 2), 4, 0.1),  # half of a core for each of two workers
        (Part(50, 1), 2, 0.0),
        (Part(80, 1), 2, 0.0),
        (Part(20, 1), 8, 0.0),
    ],
)
def test_what_is_less_than_a_core_is_kept_by_rests(
    part: Part, cores: int, rest: float
) -> None:
    """
    A step of 0.1 s is followed by as much rest as makes it the worker's share.
    """
    assert rest_seconds(part, cores, 0.1, 0.1) == pytest.approx(rest)


@pytest.mark.parametrize(("passed", "rest"), [(0.1, 0.15), (0.2, 0.05), (0.3, 0.0)])
def test_who_waited_or_paused_has_rested(passed: float, rest: float) -> None:
    """
    A step that had its core for 0.1 s of what passed: two fifths of a core are all it has.
    """
    assert rest_seconds(Part(20, 1), 2, 0.1, passed) == pytest.approx(rest)


def test_who_shares_with_nobody_does_not_rest() -> None:
    """
    A phase that computes alone has the machine, and so has each that may take all of it;
    neither does a share of a GPU need rests.
    """
    assert rest_seconds(EVERYTHING, 1, 0.1, 0.1) == 0
    assert rest_seconds(Part(100, 8), 2, 0.1, 0.1) == 0
    assert rest_seconds(Part(20, 1), 0, 0.1, 0.1) == 0


def test_no_rest_is_long() -> None:
    """
    Whatever the step took: a cancelled request is given up after it.
    """
    assert rest_seconds(Part(1, 1), 1, 5.0, 5.0) == LONGEST_SECONDS
