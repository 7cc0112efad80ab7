"""How many tokens of prompts a step has, by how long steps take."""

import pytest

from worker.pace import (
    FEWEST_TOKENS,
    PILE_SECONDS,
    PILE_TOKENS,
    TURN_SECONDS,
    TURN_TOKENS,
    Pace,
)

WHOLE = 512
FAST, SLOW = 500.0, 300.0  # tokens in a second


def paced(tokens_per_second: float, *steps: int) -> Pace:
    """By one that computed such steps at that rate."""
    pace = Pace(WHOLE)
    for num_tokens in steps:
        pace.see(num_tokens, num_tokens / tokens_per_second)
    return pace


def test_no_step_beside_streams_has_more_tokens_than_it_gains_by() -> None:
    """
    However long steps may be by the settings, and however fast the machine.
    """
    pace = Pace(8192)
    before = pace.turn_tokens

    pace.see(8192, 0.1)

    assert before == pace.turn_tokens == TURN_TOKENS


def test_steps_are_whole_until_one_was_seen() -> None:
    """
    Nobody knows how long they take before that.
    """
    assert Pace(WHOLE).turn_tokens == WHOLE


@pytest.mark.parametrize(
    ("tokens_per_second", "budget"),
    [(100_000, WHOLE), (FAST, 448), (SLOW, 256), (20, FEWEST_TOKENS)],
)
def test_a_step_beside_streams_takes_no_longer_than_a_short_prompt_may_wait(
    tokens_per_second: float, budget: int
) -> None:
    """
    A fast machine computes whole steps in that time, a slow one a part; but not so few
    tokens that they take no less.
    """
    pace = paced(tokens_per_second, WHOLE)

    assert pace.turn_tokens == budget
    assert budget <= max(FEWEST_TOKENS, TURN_SECONDS * tokens_per_second)


@pytest.mark.parametrize("tokens_per_second", [100_000, SLOW])
def test_a_pile_is_what_takes_long(tokens_per_second: float) -> None:
    """
    But never more tokens than a fast machine has in it.
    """
    pace = paced(tokens_per_second, WHOLE)

    in_time = int(PILE_SECONDS * tokens_per_second)
    assert pace.pile_tokens == pytest.approx(min(PILE_TOKENS, in_time), abs=1)
    assert Pace(WHOLE).pile_tokens == PILE_TOKENS


def test_it_follows_a_machine_that_changes() -> None:
    """
    What was seen before fades: after a score of steps the rate of now counts.
    """
    pace = paced(FAST, *[WHOLE] * 20)

    for _ in range(20):
        pace.see(FEWEST_TOKENS, FEWEST_TOKENS / SLOW)

    assert pace.turn_tokens == 256


def test_few_tokens_tell_nothing() -> None:
    """
    A short prompt takes what reading the weights takes: its rate is not that of others.
    """
    pace = paced(FAST, 448)

    pace.see(8, 0.1)

    assert pace.turn_tokens == 448


@pytest.mark.parametrize("step_tokens", [1, 64, 100])
def test_short_steps_stay_as_they_were_set(step_tokens: int) -> None:
    """
    Who wants steps of fewer tokens gets these.
    """
    pace = Pace(step_tokens)

    pace.see(step_tokens, 10.0)

    assert pace.turn_tokens == step_tokens
