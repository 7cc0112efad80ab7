"""Numbers of workers, and the way through them."""

import pytest

from bench.experiments.counts import parsed, walk
from mesh.errors import ConfigurationError


def test_a_walk_goes_one_step_at_a_time() -> None:
    """
    Every combination once, and from each to the next one number changes.
    """
    steps = [(each.prefill, each.decode) for each in walk([1, 2], [1, 2, 3])]

    assert steps == [(1, 1), (1, 2), (1, 3), (2, 3), (2, 2), (2, 1)]


def test_numbers_are_said_by_commas() -> None:
    """
    In the order in which they are wanted.
    """
    assert parsed("--decode", "3,1") == [3, 1]


@pytest.mark.parametrize("text", ["0", "1,,2", "two", "65", "-1"])
def test_what_is_no_number_of_containers_is_told(text: str) -> None:
    """
    With the option that has it; without a container there would be none to copy.
    """
    with pytest.raises(ConfigurationError, match="--decode takes numbers from 1"):
        parsed("--decode", text)
