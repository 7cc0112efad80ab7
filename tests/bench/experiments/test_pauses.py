"""Pauses of streams whose times are known."""

import pytest

from bench.experiments.pauses import paused
from bench.measures import Outcome


def stream(*times: float) -> Outcome:
    return Outcome(0.0, times, num_prompt_tokens=1, num_output_tokens=len(times))


STEADY = stream(*(step / 10 for step in range(50)))
HALTING = stream(1.0, 1.1, 2.1, 2.2, 3.2, 3.3)


def test_each_stream_counts_by_its_longest_pause() -> None:
    """
    Its seconds, and the steps that others had meanwhile.
    """
    pauses = paused([STEADY, HALTING])

    assert pauses is not None
    assert pauses.num_streams == 2
    assert pauses.ms_most == pytest.approx(1000)
    assert pauses.ms_median == pytest.approx(550)
    assert pauses.steps_missed_most == 9


@pytest.mark.parametrize(
    ("began", "ended", "expected"),
    [(1.5, 1.6, 1000), (1.05, 1.08, 100), (2.15, 9, 1000)],
)
def test_only_pauses_at_that_time_count(
    began: float, ended: float, expected: float
) -> None:
    """
    Those that reach into it, however long before they began.
    """
    pauses = paused([HALTING], began, ended)

    assert pauses is not None
    assert pauses.ms_most == pytest.approx(expected)


@pytest.mark.parametrize(("began", "ended"), [(0.1, 0.9), (3.5, 4.0)])
def test_streams_of_other_times_do_not_count(began: float, ended: float) -> None:
    """
    Where none was open there is no pause to speak of.
    """
    assert paused([HALTING], began, ended) is None


def test_an_answer_without_a_second_token_has_no_pause() -> None:
    """
    Nor one that failed at once.
    """
    assert paused([stream(1.0), stream()]) is None
