"""What part of the machine each worker is told to take."""

import pytest
from prometheus_client import REGISTRY

from kv.operations import Part
from kvstore.by_queue import HALVES, PROMPTS_FIRST, WHOLE
from kvstore.division import Division
from protocol.messages import Phase, Shares

SHARES, OTHERS = Shares(prefill=70, decode=40), Shares(prefill=60, decode=40)
PILE, LONG_PILE = [1280] * 3, [2560] * 3  # prompts of so many tokens


@pytest.fixture
def division() -> Division:
    """Two prefill workers, one for decode and one that does both; nobody computes."""
    division = Division(SHARES)
    division.join("p1", ("prefill",))
    division.join("p2", ("prefill",))
    division.join("d", ("decode",))
    division.join("both", ("prefill", "decode"))
    return division


def parts(division: Division, *computing: str) -> list[Part]:
    for worker in computing:
        division.begins(worker)
    return [division.part(worker) for worker in computing]


def changes() -> float:
    return REGISTRY.get_sample_value("tandem_shares_change_seconds_count") or 0.0


def test_while_both_phases_compute_each_has_its_share(division: Division) -> None:
    """
    Each phase has its percents, and the workers of a phase have them together.
    """
    told = parts(division, "p1", "p2", "d")

    prefill, decode = Part(70, 2), Part(40, 1)
    assert told == [prefill, prefill, decode]


@pytest.mark.parametrize(("workers", "count"), [(["d"], 1), (["p1", "p2"], 2)])
def test_a_phase_that_computes_alone_has_everything(
    division: Division, workers: list[str], count: int
) -> None:
    """
    Workers of one phase share nothing with a phase that is idle.
    """
    told = parts(division, *workers)

    assert told == [Part(100, count)] * count


def test_beside_one_who_does_both_phases_all_have_a_fair_part(
    division: Division,
) -> None:
    """
    A fused worker is on neither side, so nobody keeps to one.
    """
    told = parts(division, "p1", "d", "both")

    assert told == [Part(100, 3)] * 3


def test_who_rests_leaves_its_share(division: Division) -> None:
    """
    With the last prompt done decode has everything again, as when its worker is gone.
    """
    parts(division, "p1", "p2", "d")

    division.rests("p1")
    division.leave("p2")

    assert division.part("d") == Part(100, 1)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_a_late_worker_hears_the_present_shares(
    division: Division, phase: Phase
) -> None:
    """
    What was changed before a worker came is what it is told with its first sequence.
    """
    division.change(Shares(prefill=20, decode=90))
    division.join("late", (phase,))

    told = parts(division, "p1", "d", "late")[-1]

    percent = 20 if phase == "prefill" else 90
    assert told == Part(percent, 2)


def test_a_change_is_timed_until_everyone_who_computes_knows(
    division: Division,
) -> None:
    """
    It counts as done with the last step that was begun before it; who has nothing to
    compute, or is gone, is not waited for.
    """
    parts(division, "p1", "p2", "d")
    before = changes()

    division.change(Shares(prefill=50, decode=50))
    division.part("d")
    division.rests("p1")
    not_yet = changes()
    division.leave("p2")

    assert (not_yet - before, changes() - before) == (0, 1)


def test_the_same_shares_again_are_no_change(division: Division) -> None:
    """
    Whoever publishes what is in force disturbs nobody.
    """
    before = changes()

    division.change(SHARES)
    same = changes()
    division.change(Shares(prefill=100, decode=100))

    assert (same - before, changes() - before) == (0, 1)


def test_a_person_s_order_stands_until_it_is_taken_back() -> None:
    """
    What the controller says meanwhile is not heard, and what it said before is forgotten.
    """
    division, person, found = Division(), Shares(prefill=70, decode=30), []

    for act in (
        lambda: division.steer(SHARES),
        lambda: division.change(person),
        lambda: division.steer(SHARES),
        lambda: division.change(None),
        lambda: division.steer(OTHERS),
    ):
        act()
        found.append((division.shares_by, division.shares))

    order = ("order", person)
    assert found[:3] == [("controller", SHARES), order, order]
    assert found[3:] == [("queue", HALVES), ("controller", OTHERS)]


def test_where_nobody_set_any_they_follow_the_queue() -> None:
    """
    Halves while few prompts wait, everything for both while they pile up, and nearly all of it
    for prompts where very many do; workers hear of it at their next steps.
    """
    division = Division()
    division.join("p", ("prefill",))
    division.join("d", ("decode",))
    calm = parts(division, "p", "d")

    division.see_queue(PILE)
    piled_up = [division.part(worker) for worker in ("p", "d")]
    division.see_queue(LONG_PILE)
    very_many = [division.part(worker) for worker in ("p", "d")]
    division.see_queue([])

    assert calm == [Part(50, 1)] * 2
    assert piled_up == [Part(100, 1)] * 2
    assert very_many == [Part(100, 1), Part(PROMPTS_FIRST.decode, 1)]
    assert division.part("d") == Part(50, 1)
    assert (division.shares, division.shares_by) == (HALVES, "queue")


@pytest.mark.parametrize("first", [None, SHARES], ids=["the queue", "settings"])
def test_an_order_comes_before_all_until_it_is_taken_back(first: Shares | None) -> None:
    """
    What was ordered holds whatever waits; without it they are what they are by settings
    or, where these say nothing, by the queue as it is by then.
    """
    division, ordered = Division(first), Shares(prefill=20, decode=80)

    division.change(ordered)
    division.see_queue(PILE)
    meanwhile = division.shares, division.shares_by
    division.change(None)

    assert meanwhile == (ordered, "order")
    assert division.shares == (first or WHOLE)
    assert division.shares_by == ("start" if first else "queue")
