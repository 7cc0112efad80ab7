"""Steps computed as one: the same times as step by step, whatever comes between."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.simulation.costs import Pace
from bench.simulation.span import Span

paces = st.builds(Pace, st.floats(0.01, 1.0), st.floats(0.0, 0.05))


@given(paces, st.integers(1, 50), st.lists(st.floats(0.0, 5.0), max_size=5))
def test_steps_end_as_if_each_were_computed(
    pace: Pace, num_steps: int, pauses: list[float]
) -> None:
    """
    However often somebody looks, steps end when adding them up one by one says.
    """
    expected, now = [], 1.0
    for number in range(num_steps):
        now += pace.first + number * pace.more
        expected.append(now)
    span = Span(1.0, num_steps, pace)

    found, now = [], 1.0
    for pause in pauses:
        now += pause
        found += span.settle(now)
    found += span.settle(max(now, span.ends))

    assert found == pytest.approx(expected)
    assert span.num_steps == 0


def test_a_change_of_pace_keeps_what_is_done() -> None:
    """
    Half of a step is done, the other half takes twice as long; so do all further steps.
    """
    span = Span(0.0, 3, Pace(1.0))

    span.settle(0.5)
    span.change(0.5, Pace(2.0))

    assert span.settle(span.ends) == pytest.approx([1.5, 3.5, 5.5])


def test_pace_may_change_again_within_a_step() -> None:
    """
    Progress within the step adds up over the changes.
    """
    span = Span(0.0, 1, Pace(1.0))

    for now, pace in ((0.5, Pace(2.0)), (1.0, Pace(1.0))):
        span.settle(now)
        span.change(now, pace)

    assert span.ends == pytest.approx(1.25)


def test_it_stops_after_the_current_step() -> None:
    """
    A step that has begun is ended; between two steps nothing is left to do.
    """
    within, between = Span(0.0, 9, Pace(1.0)), Span(0.0, 9, Pace(1.0))
    within.settle(2.5)
    between.settle(3.0)

    within.stop(2.5)
    between.stop(3.0)

    assert within.ends == pytest.approx(3.0)
    assert between.ends == pytest.approx(3.0)
    assert (within.num_steps, between.num_steps) == (1, 0)
