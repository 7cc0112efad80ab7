"""Whose turn it is, of systems whose attainment is known."""

import pytest
from found import at, findings, system

from bench.experiments.findings import Findings
from bench.experiments.sweep import Endless, Ladder, Listed
from bench.experiments.turns import Turn, next_turn, reference_of

LADDER = Listed((1.0, 2.0, 4.0, 8.0))
HOLDS, FAILS = 1.0, 0.5


def turns(
    capacity: dict[str, float], rounds: int = 1, ladder: Ladder = LADDER
) -> tuple[list[Turn], Findings]:
    """Of systems that hold up to their capacity, until all is known."""
    found = findings(*(system(name) for name in capacity), reference=None)
    setting = found.setting.model_copy(update={"rounds": rounds})
    found, taken = found.model_copy(update={"setting": setting}), []
    while turn := next_turn(found, list(capacity), ladder):
        taken.append(turn)
        attainment = HOLDS if turn.rate <= capacity[turn.name] else FAILS
        found = found.with_point(turn.name, at(turn.rate, attainment))
        reference = reference_of(found.systems[0], ladder)
        found = found.model_copy(update={"reference": reference})
    return taken, found


def told(taken: list[Turn]) -> list[str]:
    return [f"{turn.name}{turn.rate:g}" for turn in taken]


def test_neighbours_in_time_are_asked_the_same() -> None:
    """
    Systems in their order at one rate, then those that held at the next.
    """
    taken, _ = turns({"a": 4.0, "b": 2.0})

    assert told(taken) == ["a1", "b1", "a2", "b2", "a4", "b4", "a8"]


def test_rounds_come_before_the_next_rate() -> None:
    """
    Every other one goes backwards, so that a drift of the machine favours nobody.
    """
    taken, _ = turns({"a": 1.0, "b": 1.0}, rounds=3)

    assert told(taken[:6]) == ["a1", "b1", "b1", "a1", "a1", "b1"]
    assert told(taken[6:]) == ["a2", "b2", "b2", "a2", "a2", "b2"]


def test_the_median_of_rounds_decides() -> None:
    """
    One round that failed is no reason to end.
    """
    found = findings(
        system("a", at(1.0, 0.5), at(1.0, 0.9), at(1.0, 1.0)), reference=None
    )
    setting = found.setting.model_copy(update={"rounds": 3})
    found = found.model_copy(update={"setting": setting})

    assert found.systems[0].highest == 1.0
    assert next_turn(found, ["a"], LADDER) == Turn("a", 2.0)


def test_everyone_is_asked_at_the_reference_rate() -> None:
    """
    At last, those who had not come so far.
    """
    taken, found = turns({"a": 8.0, "b": 1.0})

    assert found.reference == 4.0
    assert told(taken)[-1] == "b4"
    assert not [turn for turn in taken if turn == Turn("b", 8.0)]


def test_systems_are_compared_even_where_the_first_holds_nothing() -> None:
    """
    At the lowest rate, which all were asked at anyway.
    """
    taken, found = turns({"a": 0.5, "b": 2.0})

    assert found.reference == 1.0
    assert told(taken) == ["a1", "b1", "b2", "b4"]


def test_rounds_at_the_reference_rate_are_in_turn_too() -> None:
    """
    Not one system after the other.
    """
    taken, _ = turns({"a": 8.0, "b": 1.0, "c": 1.0}, rounds=2)

    assert told(taken)[-4:] == ["b4", "c4", "c4", "b4"]


@pytest.mark.parametrize("capacity", [0.3, 3.0, 40.0])
def test_a_search_ends_between_two_neighbours(capacity: float) -> None:
    """
    On the ladder without ends too, which systems begin on at the same rung.
    """
    taken, found = turns({"a": capacity, "b": 1.5 * capacity}, ladder=Endless())

    assert [each.highest for each in found.systems] == [
        pytest.approx(capacity, rel=0.1),
        pytest.approx(1.5 * capacity, rel=0.1),
    ]
    assert taken[0].rate == taken[1].rate


def test_what_was_not_asked_for_is_left_alone() -> None:
    """
    Findings may have systems that nobody names now.
    """
    found = findings(system("a"), system("b"), reference=None)

    assert next_turn(found, ["b"], LADDER) == Turn("b", 1.0)
