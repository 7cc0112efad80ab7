"""The controller of the shares: rule by rule on windows, then on simulated queues."""

from dataclasses import replace
from itertools import chain, cycle, islice, pairwise, repeat

import pytest
from queueing import Load, Machine, Queues, Run, steered

from gateway.controller import Controller, Verdict
from gateway.splits import FIRST, LEAST, WHOLE
from gateway.windows import Goals, Window, nearest_rank
from protocol.messages import Shares

GOALS = Goals(ttft_seconds=0.5, tpot_seconds=0.05, percentile=90)
SPLIT = Shares(prefill=50, decode=50)
FOR_STREAMS = Shares(prefill=40, decode=60)
LIGHT = Load(rate=4, prompt=500, output=20)
HARDLY_ANY = Load(rate=1, prompt=500, output=20)
PROMPTS = Load(rate=9, prompt=700, output=20)
OUTPUTS = Load(rate=5, prompt=500, output=100)
TOO_MUCH = Load(rate=30, prompt=800, output=200)


def window(ttft: float, tpot: float, shares: Shares = SPLIT, load: float = 1) -> Window:
    """Of twenty requests that all saw the same."""
    return Window(shares, [ttft] * 20, [tpot] * 20, load)


def told(controller: Controller, *windows: Window) -> list[Verdict]:
    return [controller.decide(each) for each in windows]


def followed(controller: Controller, *seen: tuple[float, float]) -> list[Verdict]:
    """Windows of (TTFT, TPOT) under whatever the verdicts before say."""
    verdicts, shares = list[Verdict](), SPLIT
    for ttft, tpot in seen:
        verdicts.append(controller.decide(window(ttft, tpot, shares)))
        shares = verdicts[-1].shares
    return verdicts


def run_of(*loads: tuple[Load, int], goals: Goals = GOALS, **options: object) -> Run:
    """So many windows of each load, from the first split if nothing else is said."""
    machine = options.pop("machine", Machine())
    each = chain.from_iterable(repeat(load, count) for load, count in loads)
    return steered(Queues(machine), goals, each, seconds=10.0, **options)


def test_percentiles_are_of_the_nearest_rank() -> None:
    """
    The least value that so many percent do not exceed; of nothing there is none.
    """
    values = [3.0, 1.0, 2.0, 4.0]

    ranks = [nearest_rank(values, percentile) for percentile in (1, 25, 50, 90, 100)]

    assert ranks == [1.0, 1.0, 2.0, 4.0, 4.0]
    assert nearest_rank([], 90) is None


@pytest.mark.parametrize(
    ("ttft", "tpot", "reason", "grows"),
    [
        (0.6, 0.02, "ttft fails", "prefill"),
        (0.1, 0.06, "tpot fails", "decode"),
        (0.1, 0.02, "both hold", None),
        (9.0, 9.0, "both fail", None),
    ],
)
def test_the_phase_that_fails_alone_gets_more(
    ttft: float, tpot: float, reason: str, grows: str | None
) -> None:
    """
    If both fail or none does the shares stay as they are.
    """
    controller = Controller(GOALS)

    verdict = told(controller, *[window(ttft, tpot)] * 3)[-1]

    more = "prefill" if verdict.shares.prefill > 50 else "decode"
    assert verdict.reason == reason
    assert (verdict.shares == SPLIT) == (grows is None)
    assert grows in (None, more)


def test_it_takes_as_many_steps_as_the_model_asks_for() -> None:
    """
    A little beyond the SLO is one step of ten percent, far beyond it three; each comes
    with what the model expects.
    """
    near = told(Controller(GOALS), *[window(0.51, 0.01)] * 3)[-1]
    far = told(Controller(GOALS), *[window(5.0, 0.01)] * 3)[-1]

    assert (near.shares.prefill, far.shares.prefill) == (60, 80)
    assert (near.ttft or 9.0) <= 0.5 < (far.ttft or 0.0)
    assert 0.01 < (near.tpot or 9.0) < 0.05


def test_a_phase_gets_no_more_than_leaves_the_other_its_slo() -> None:
    """
    Where the other phase would fail instead, nothing changes.
    """
    some = told(Controller(GOALS), *[window(5.0, 0.042)] * 3)[-1]
    none = told(Controller(GOALS), *[window(5.0, 0.049)] * 3)[-1]

    assert some.shares.prefill == 60
    assert (none.shares, none.reason) == (SPLIT, "no split would do")


def test_the_last_step_comes_alone() -> None:
    """
    A tenth is the least that a phase is left with, and only from the split before: far
    from what was seen, nobody knows what so little does.
    """
    near, beside = Shares(prefill=60, decode=40), Shares(prefill=80, decode=20)
    last = Shares(prefill=100 - LEAST, decode=LEAST)

    two, one, none = (
        told(Controller(GOALS), *[window(5.0, 0.002, each)] * 3)[-1]
        for each in (near, beside, last)
    )

    assert (two.shares, one.shares) == (beside, last)
    assert (none.shares, none.reason) == (last, "no split would do")


def test_one_bad_window_changes_nothing() -> None:
    """
    A failure has to be seen twice in a row, after a window that still has old requests.
    """
    bad, good = window(0.6, 0.02), window(0.1, 0.02)

    verdicts = told(Controller(GOALS), bad, bad, good, bad, good)

    reasons = [verdict.reason for verdict in verdicts]
    assert reasons == [
        "settling",
        "not sure yet",
        "both hold",
        "not sure yet",
        "both hold",
    ]


def test_in_the_first_split_prompts_need_not_fail_twice() -> None:
    """
    Their queue grows while one waits; streams may wait until it is sure.
    """
    late = told(Controller(GOALS), *[window(0.6, 0.02, FIRST)] * 2)
    slow = told(Controller(GOALS), *[window(0.1, 0.06, FIRST)] * 3)

    assert [verdict.reason for verdict in late] == ["settling", "ttft fails"]
    assert [verdict.reason for verdict in slow][1:] == ["not sure yet", "tpot fails"]


def test_few_requests_say_nothing() -> None:
    """
    A window with three requests is no ground for a change, however slow they were, nor
    are four windows with none but three.
    """
    controller, empty = Controller(GOALS), Window(SPLIT, [], [], 1.0)
    few = Window(SPLIT, [9.0] * 3, [], 1.0)

    verdicts = told(controller, empty, *[few, empty, empty, empty] * 5)

    reasons = [verdict.reason for verdict in verdicts]
    assert (reasons[0], set(reasons[1:])) == ("settling", {"too few requests"})


def test_windows_with_few_requests_are_looked_at_together() -> None:
    """
    Until they have enough, so that one slow request of four is no percentile.
    """
    one_slow = Window(SPLIT, [0.1] * 3 + [0.6], [0.02] * 4, 1.0)
    fast = Window(SPLIT, [0.1] * 4, [0.02] * 4, 1.0)

    verdicts = told(Controller(GOALS), fast, *[one_slow, fast, fast] * 5)

    reasons = [verdict.reason for verdict in verdicts[1:]]
    assert reasons == ["too few requests", "too few requests", "both hold"] * 5


def test_a_split_ends_with_the_load_that_asked_for_it() -> None:
    """
    With a third of the prompts, and TTFT far within its SLO, the first split comes back
    after some windows, whether or not there are requests enough for a look.
    """
    for later in (window(0.05, 0.02, load=1000), Window(SPLIT, [], [], 0.0)):
        controller, shares, verdicts = Controller(GOALS), SPLIT, list[Verdict]()
        for each in [window(5.0, 0.01, load=4000)] * 3 + [later] * 7:
            verdicts.append(controller.decide(replace(each, shares=shares)))
            shares = verdicts[-1].shares

        reasons = [verdict.reason for verdict in verdicts]
        assert reasons.index("ttft fails") == 2
        assert reasons.count("no longer needed") == 1
        assert shares == FIRST


@pytest.mark.parametrize(
    "later",
    [(0.4, 0.02, 1000.0), (0.05, 0.02, 3000.0)],
    ids=["it still needs it", "much the same load"],
)
def test_a_split_that_may_be_why_all_holds_remains(
    later: tuple[float, float, float],
) -> None:
    """
    Latencies within their SLOs alone are no reason to leave it.
    """
    ttft, tpot, load = later
    controller = Controller(GOALS)
    split = told(controller, *[window(0.6, 0.02, load=4000)] * 3)[-1].shares

    verdicts = told(controller, *[window(ttft, tpot, split, load)] * 40)

    assert {verdict.shares for verdict in verdicts} == {split}


def test_splits_that_are_needed_for_moments_come_ever_more_rarely() -> None:
    """
    A load that comes and goes, with six windows of each: each split that ended soon makes
    the next one wait longer for its reason, until there is none.
    """
    controller, shares = Controller(GOALS), FIRST
    many, few = window(0.6, 0.02, load=4000), window(0.05, 0.02, load=100)

    begun = []
    for at, each in enumerate(islice(cycle([many] * 6 + [few] * 6), 240)):
        verdict = controller.decide(replace(each, shares=shares))
        if verdict.reason == "ttft fails":
            begun.append(at)
        shares = verdict.shares

    assert 1 <= len(begun) <= 4
    assert begun[-1] < 60


def test_streams_that_wait_for_prompts_get_a_part_of_their_own() -> None:
    """
    What fails is far beyond its SLO, and no curve through it says that a split would do.
    But most streams have a TPOT that they would keep: the others stand behind prompts.
    These need room for what they give away.
    """
    waiting, crowded = (
        Window(WHOLE, [ttft] * 20, [0.01] * 15 + [0.5] * 5, 1.0) for ttft in (0.2, 0.4)
    )
    slow = Window(WHOLE, [0.2] * 20, [0.04] * 15 + [0.5] * 5, 1.0)

    parted = told(Controller(GOALS), *[waiting] * 3)[-1]
    left = [told(Controller(GOALS), *[each] * 3)[-1] for each in (crowded, slow)]

    assert (parted.shares, parted.reason) == (FIRST, "tpot fails")
    assert {(v.shares, v.reason) for v in left} == {(WHOLE, "no split would do")}


def test_one_slow_prompt_is_no_reason_to_leave_a_split() -> None:
    """
    A window has few requests, and some are always slow; many that fail are.
    """
    one = Window(FOR_STREAMS, [0.2] * 7 + [0.6], [0.02] * 8, 1.0)
    many = Window(FOR_STREAMS, [0.2] * 5 + [0.6] * 3, [0.02] * 8, 1.0)

    remains, leaves = told(Controller(GOALS), one, many)

    assert remains.shares == FOR_STREAMS
    assert (leaves.shares, leaves.reason) == (WHOLE, "a split was worse")


def test_a_split_that_was_better_after_all_comes_back() -> None:
    """
    It is left at once when prompts fail by it. If streams then fail by more, it was the
    better one, and from then on it has to be worse than that to be left again.
    """
    controller = Controller(GOALS)
    good, bad, worse = (window(ttft, 0.02, FOR_STREAMS) for ttft in (0.3, 0.55, 1.0))

    left = told(controller, good, good, good, bad)[-1]
    *_, last, back = told(controller, *[window(0.2, 0.08, WHOLE)] * 5)
    remains = told(controller, good, bad)[-1]
    again = told(controller, worse)[-1]

    assert (left.shares, left.reason) == (WHOLE, "a split was worse")
    assert (last.shares, last.reason) == (WHOLE, "a trial of 100/100")
    assert (back.shares, back.reason) == (FOR_STREAMS, "the split was better")
    assert remains.shares == FOR_STREAMS
    assert (again.shares, again.reason) == (WHOLE, "a split was worse")


@pytest.mark.parametrize("shares", [FIRST, Shares(prefill=80, decode=20)])
def test_no_split_lives_on_credit(shares: Shares) -> None:
    """
    Where ever more streams decode (100, 100) comes while both still hold, and it is not
    that split which it is compared with. Where as many end as begin nothing changes, nor
    while TPOT is far from its SLO.
    """

    def reasons(tpot: float, num_ended: int) -> list[str]:
        seen = replace(window(0.3, tpot, shares), num_begun=20, num_ended=num_ended)
        return [verdict.reason for verdict in told(Controller(GOALS), *[seen] * 6)]

    credit = replace(window(0.3, 0.03, shares), num_begun=20, num_ended=8)
    controller = Controller(GOALS)
    *_, left = told(controller, *[credit] * 4)
    after = told(controller, *[window(0.3, 0.03, WHOLE)] * 9)

    assert (left.shares, left.reason) == (WHOLE, "streams pile up")
    assert {verdict.shares for verdict in after} == {WHOLE}
    assert set(reasons(0.03, 20)) == set(reasons(0.01, 8)) == {"settling", "both hold"}


@pytest.mark.parametrize("period", [1, 2, 3, 5])
def test_a_load_that_alternates_does_not_make_it_swing(period: int) -> None:
    """
    Now TTFT fails, now TPOT, as fast as windows come or somewhat slower: it changes now
    and then, ever more rarely. At the pace of the windows only trials change anything.
    """
    seen = cycle([(0.6, 0.02)] * period + [(0.1, 0.055)] * period)

    verdicts = followed(Controller(GOALS), *islice(seen, 400))

    shares = [verdict.shares for verdict in verdicts]
    changes = [i for i, (a, b) in enumerate(pairwise(shares)) if a != b]
    assert len(changes) <= 24
    assert sum(i >= 200 for i in changes) <= 8
    assert period > 1 or set(shares) == {SPLIT, WHOLE}


def test_a_change_from_outside_is_where_it_goes_on() -> None:
    """
    Shares that a person set are given time as its own would be.
    """
    controller, theirs = Controller(GOALS), Shares(prefill=60, decode=40)
    told(controller, *[window(0.1, 0.02)] * 5)

    verdicts = told(controller, *[window(0.6, 0.02, theirs)] * 3)

    assert [v.reason for v in verdicts] == ["settling", "not sure yet", "ttft fails"]
    assert verdicts[-1].shares == Shares(prefill=80, decode=20)


@pytest.mark.parametrize(
    ("ttft", "tpot", "prefill"),
    [(0.6, 0.02, 30), (0.1, 0.06, 80), (0.6, 0.06, 80)],
)
def test_who_gave_way_and_fails_gets_everything_back(
    ttft: float, tpot: float, prefill: int
) -> None:
    """
    At once: it held before the split, so its failure needs no second window.
    """
    split = Shares(prefill=prefill, decode=100 - prefill)

    (verdict,) = told(Controller(GOALS), window(ttft, tpot, split))

    assert (verdict.shares, verdict.reason) == (WHOLE, "a split was worse")


def test_competing_phases_are_not_split_in_vain() -> None:
    """
    Of TPOT the model says all: if no split brings it within its SLO none is taken. TTFT
    has a queue in it, which any more may work off.
    """
    tokens = told(Controller(GOALS), *[window(0.1, 0.2, WHOLE)] * 3)[-1]
    prompts = told(Controller(GOALS), *[window(5.0, 0.01, WHOLE)] * 3)[-1]

    assert (tokens.shares, tokens.reason) == (WHOLE, "no split would do")
    assert prompts.shares == Shares(prefill=80, decode=20)


def test_without_an_slo_of_its_own_a_phase_never_fails() -> None:
    """
    With a TPOT alone, TTFT may be anything.
    """
    controller = Controller(Goals(tpot_seconds=0.05))

    verdict = told(controller, *[window(100.0, 0.06)] * 3)[-1]

    assert verdict.reason == "tpot fails"


def test_a_light_load_is_left_alone() -> None:
    """
    While both SLOs hold nothing is touched.
    """
    run = run_of((LIGHT, 30))

    assert run.num_changes == 0


def test_a_step_of_the_load_up_and_down() -> None:
    """
    More and longer prompts get prefill more until TTFT holds; when they are gone the
    first split is back.
    """
    run = run_of((LIGHT, 4), (PROMPTS, 12), (HARDLY_ANY, 10))

    assert run.pressures[4] > 1
    assert max(run.pressures[11:]) <= 1
    assert run.shares[15].prefill > run.shares[15].decode
    assert (run.shares[-1], run.reasons.count("no longer needed")) == (FIRST, 1)
    assert run.num_changes <= 3


def test_decode_gets_more_as_answers_grow() -> None:
    """
    The other way round, and prompts keep what they need.
    """
    run = run_of((OUTPUTS, 24), goals=Goals(1.0, 0.017))

    assert LEAST <= run.shares[-1].prefill < FIRST.prefill
    assert max(run.pressures[-8:]) <= 1
    assert run.num_changes <= 2


def test_what_no_split_can_mend_is_left_alone() -> None:
    """
    With far too much load both fail, whatever the shares; from the first split (100, 100) is
    tried now and then.
    """
    loads, goals = [(TOO_MUCH, 40)], Goals(0.5, 0.015)

    whole, parted = (
        run_of(*loads, goals=goals, shares=each) for each in (WHOLE, FIRST)
    )

    assert whole.num_changes == 0
    assert set(whole.reasons) == {"settling", "both fail"}
    assert set(parted.shares) <= {FIRST, WHOLE}
    assert parted.num_changes <= 6


@pytest.mark.parametrize("prefill", [30, 60])
def test_a_split_that_is_worse_than_none_is_left(prefill: int) -> None:
    """
    Where phases that compete lose little, (100, 100) holds what no split does: it is
    taken, and remains.
    """
    load, machine = Load(rate=7, prompt=700, output=20), Machine(competing=1.8)
    split = Shares(prefill=prefill, decode=100 - prefill)

    run = run_of((load, 60), goals=Goals(0.3, 0.03), machine=machine, shares=split)

    assert "a split was worse" in run.reasons
    assert run.shares[25:].count(WHOLE) >= 0.8 * len(run.shares[25:])
    assert max(run.pressures[-20:]) < 1.2


def test_a_split_that_is_better_survives_its_trials() -> None:
    """
    Where phases that compete lose much, a split that fails is tried against (100, 100),
    returns, and is tried ever more rarely.
    """
    load, machine = Load(rate=11, prompt=700, output=20), Machine(competing=0.6)

    run = run_of((load, 80), machine=machine)

    trials = [i for i, r in enumerate(run.reasons) if r == "the split was better"]
    pauses = [b - a for a, b in pairwise(trials)]
    assert len(trials) >= 2
    assert pauses == sorted(pauses)
    assert run.shares.count(WHOLE) < 0.4 * len(run.shares)


def test_a_split_that_is_much_worse_is_left_at_once() -> None:
    """
    It needs no trial: how (100, 100) did is still known. It is retried ever more rarely.
    """
    good = Window(WHOLE, [0.1] * 20, [0.01] * 15 + [0.0502] * 5, 1.0)
    controller, shares, reasons = Controller(GOALS), WHOLE, []

    for _ in range(120):
        bad = window(0.1, 0.2, shares)
        verdict = controller.decide(good if shares == WHOLE else bad)
        shares = verdict.shares
        reasons.append(verdict.reason)

    retried = [i for i, reason in enumerate(reasons) if reason == "tpot fails"]
    assert 2 <= len(retried) <= 5
    assert all(reasons[i + 3] == "a split was worse" for i in retried if i < 110)
    pauses = [b - a for a, b in pairwise(retried)]
    assert pauses == sorted(pauses)
