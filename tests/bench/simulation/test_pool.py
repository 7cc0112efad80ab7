"""Pools of each kind: one request to the instant, many without losing any."""

import random
from dataclasses import replace
from itertools import pairwise
from math import ceil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulating import COSTS, DEVICE, Constant, design, num_tokens, request

from bench.simulation.control import Shares, Window
from bench.simulation.costs import ALONE, Share, decoding, prompt
from bench.simulation.design import KINDS, Kind
from bench.simulation.pool import Pool, closed_loop, open_loop
from bench.simulation.worker import Rules
from bench.workload import Planned, poisson

kinds = pytest.mark.parametrize("kind", KINDS)
CHUNKS = Rules(max_num_batched_tokens=64)


def prompt_seconds(num_tokens: int, part: Share | None = None) -> float:
    return COSTS.pace(prompt(num_tokens, 0), part or Share()).first


def decode_seconds(num_context: int, num_steps: int) -> float:
    """Of one sequence alone."""
    return sum(COSTS.pace(decoding(1, num_context + n)).first for n in range(num_steps))


@kinds
def test_a_request_alone_takes_what_the_roofline_says(kind: Kind) -> None:
    """
    Its way to a worker, its prompt, the handoff or KV transfer, and its steps.
    """
    transfer = 50 * COSTS.shape.kv_bytes_per_token / 1e6
    between = {"fused": 0.0, "semi": DEVICE.handoff_seconds, "disaggregated": transfer}

    pool = Pool(design(kind, transfer_bytes=1e6))
    (outcome,) = open_loop([pool], [request(50, 11, at=3.0)])

    first = DEVICE.request_seconds + prompt_seconds(50)
    assert outcome.ttft == pytest.approx(first)
    rest = between[kind] + decode_seconds(50, 10)
    assert outcome.e2e == pytest.approx(first + rest)
    assert len(outcome.times) == 11


def test_a_long_prompt_is_computed_in_chunks() -> None:
    """
    Each attends to those before it; a step for each has its fixed cost.
    """
    pool = Pool(design("fused", decode=CHUNKS))

    (outcome,) = open_loop([pool], [request(150, 1)])

    chunks = [
        prompt(64, 0, is_last=False),
        prompt(64, 64, is_last=False),
        prompt(22, 128),
    ]
    seconds = sum(COSTS.pace(chunk).first for chunk in chunks)
    assert outcome.ttft == pytest.approx(DEVICE.request_seconds + seconds)


def test_streams_of_a_fused_pool_wait_for_chunks() -> None:
    """
    While a prompt is computed beside it, a stream's tokens are a chunk's time apart; in
    a semi pool they are not.
    """
    planned = [request(10, 60), request(400, 2, at=0.1)]
    longest = {}

    for kind in ("fused", "semi"):
        pool = Pool(design(kind, decode=CHUNKS, prefill=CHUNKS))
        stream = max(open_loop([pool], planned), key=lambda each: len(each.times))
        longest[kind] = max(stream.itls)

    assert longest["fused"] > prompt_seconds(63)
    assert longest["semi"] < prompt_seconds(63)


def test_prompts_may_go_before_who_decodes() -> None:
    """
    As in a scheduler that prefers prompts: streams stand still for all of a prompt.
    """
    rules = Rules(max_num_batched_tokens=1000, prompts="before")
    pool = Pool(design("fused", decode=rules))

    stream, _ = sorted(
        open_loop([pool], [request(10, 60), request(400, 2, at=0.1)]),
        key=lambda each: each.sent,
    )

    assert max(stream.itls) > prompt_seconds(400)


def random_load(seed: int) -> list[Planned]:
    rng = random.Random(seed)
    planned = [request(rng.randrange(1, 300), rng.randrange(1, 40)) for _ in range(30)]
    return poisson(planned, rng.choice((2.0, 10.0, 1000.0)), seed)


@kinds
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), capacity=st.sampled_from([0, 340, 500, 2000]))
def test_every_request_ends_with_all_its_tokens(
    kind: Kind, seed: int, capacity: int
) -> None:
    """
    However little memory there is: in order of time, none before the roofline allows,
    and the memory is empty afterwards.
    """
    planned = random_load(seed)
    pool = Pool(design(kind, prefill=CHUNKS, decode=CHUNKS, max_tokens=capacity))

    outcomes = open_loop([pool], planned)

    assert sorted(each.sent for each in outcomes) == [each.at for each in planned]
    assert all(each.is_answered for each in outcomes)
    assert sum(len(each.times) for each in outcomes) == num_tokens(planned)
    for each in outcomes:
        assert each.ttft > DEVICE.request_seconds
        assert all(gap > 0 for gap in each.itls)
    for _, room in pool.rooms:
        assert (room.used, room.num_growing) == (0, 0)
        assert room.most <= room.capacity


@kinds
def test_what_no_memory_could_hold_is_refused(kind: Kind) -> None:
    """
    At once and alone: others are answered.
    """
    pool = Pool(design(kind, max_tokens=100))

    outcomes = open_loop([pool], [request(80, 21), request(80, 20)])

    refused, answered = sorted(outcomes, key=lambda each: len(each.times))
    assert refused.error == "longer than the memory"
    assert answered.is_answered


@kinds
def test_when_memory_is_full_the_youngest_gives_way(kind: Kind) -> None:
    """
    It is computed again, and ends after the older one, which is not delayed for it.
    """
    planned = [request(60, 60), request(60, 60, at=0.01)]
    roomy, tight = (Pool(design(kind, max_tokens=n)) for n in (1000, 190))

    free = open_loop([roomy], planned)
    older, younger = sorted(open_loop([tight], planned), key=lambda each: each.sent)

    assert (roomy.num_preempted, tight.num_preempted) == (0, 1)
    assert older.e2e <= free[0].e2e
    assert younger.e2e > free[1].e2e
    assert len(younger.times) == 60


def test_shares_that_fit_are_kept_while_both_compute() -> None:
    """
    A prompt that comes while a stream runs is computed on its share; without company it
    has the whole device.
    """
    stream, late = request(10, 4000), request(100, 1, at=1.0)
    thirds = design("semi", shares=Shares(25, 75))

    outcomes = open_loop([Pool(thirds)], [stream, late])

    shared = prompt_seconds(100, Share(0.25, is_alone=False))
    (seen,) = (each for each in outcomes if each.sent == 1.0)
    assert seen.ttft == pytest.approx(DEVICE.request_seconds + shared)


def test_shares_that_are_more_than_there_is_take_what_the_other_leaves() -> None:
    """
    With (100, 100) a prompt gets more than its half beside a stream that waits for
    memory; and the less decode may have, the more it gets.
    """
    ttfts = []
    for shares in (Shares(50, 50), Shares(100, 100), Shares(100, 20)):
        pool = Pool(design("semi", shares=shares))
        outcomes = open_loop([pool], [request(10, 4000), request(100, 1, at=1.0)])
        ttfts += [each.ttft for each in outcomes if each.sent == 1.0]

    assert all(before > after for before, after in pairwise(ttfts))


def test_steps_of_cores_take_turns() -> None:
    """
    Where both phases may have everything, a prompt waits for the step that has begun and
    then has the whole device; the stream waits for the prompt. Its way to the worker is
    twice as long, beside steps that have all cores.
    """
    cores = replace(COSTS, device=DEVICE.model_copy(update={"num_cores": 2}))
    stream, late = request(10, 4000), request(100, 1, at=1.0)

    outcomes = open_loop([Pool(design("semi", cores))], [stream, late])

    whole = prompt_seconds(100, ALONE)
    asked, streamed = sorted(outcomes, key=lambda each: each.num_output_tokens)
    step = min(streamed.itls)
    waited = asked.ttft - 2 * DEVICE.request_seconds - whole
    assert 0 <= waited <= 2 * step
    assert whole < max(streamed.itls) < whole + 3 * step


def test_a_gateway_takes_one_request_after_the_other() -> None:
    """
    Of three that come at once the last one waits for the two before it, and then takes as
    long as they did.
    """
    costs = replace(COSTS, device=DEVICE.model_copy(update={"door_seconds": 1.0}))

    outcomes = open_loop([Pool(design("fused", costs))], [request(10, 1)] * 3)

    first, second, third = sorted(each.ttft for each in outcomes)
    assert first == pytest.approx(1.0 + DEVICE.request_seconds + prompt_seconds(10))
    assert (second - first, third - second) == (pytest.approx(1.0), pytest.approx(1.0))


def test_a_controller_sees_windows_and_changes_shares() -> None:
    """
    From its first decision on; windows hold what happened in them, and end with the load.
    """
    seen: list[Window] = []
    calm = Shares(30, 90)
    pool = Pool(
        design(
            "semi",
            controller=lambda: Constant(calm, seen),
            window_seconds=2.0,
        )
    )
    planned = poisson([request(40, 20) for _ in range(50)], 10.0, 0)

    outcomes = open_loop([pool], planned)

    assert pool.shares == [(0.0, Shares(100, 100)), (pytest.approx(2, abs=0.5), calm)]
    assert seen[0].shares == Shares(100, 100)
    assert {window.shares for window in seen[1:]} == {calm}
    assert seen[0].num_arrived / seen[0].seconds == pytest.approx(10, rel=0.5)
    assert seen[0].num_prompt_tokens == 40 * seen[0].num_arrived
    last = max(each.times[-1] for each in outcomes)
    assert len(seen) <= ceil(last / 2.0) + 1
    ttfts = {ttft for window in seen for ttft in window.ttfts}
    assert ttfts >= {each.ttft for each in outcomes}


def test_a_controller_sees_who_still_waits() -> None:
    """
    A prompt that takes longer than a window is in each of them, for as long as it waits.
    """
    seen: list[Window] = []
    controlled = design(
        "semi",
        controller=lambda: Constant(Shares(100, 100), seen),
        window_seconds=0.05,
    )

    (outcome,) = open_loop([Pool(controlled)], [request(1500, 1)])

    *waits, ttft = (ttft for window in seen for ttft in window.ttfts)
    assert waits == pytest.approx([0.05 * (n + 1) for n in range(len(waits))])
    assert ttft == outcome.ttft


def test_kv_transfer_delays_decode_and_holds_room() -> None:
    """
    One sequence after another: on a slow link the second waits for the first, after a
    first token that is not later.
    """
    planned = [request(50, 5), request(50, 5)]
    seconds = 50 * COSTS.shape.kv_bytes_per_token / 1e4

    fast = open_loop([Pool(design("disaggregated"))], planned)
    slow = open_loop([Pool(design("disaggregated", transfer_bytes=1e4))], planned)

    assert [each.ttft for each in slow] == [each.ttft for each in fast]
    gaps = sorted(each.itls[0] for each in slow)
    assert gaps[0] == pytest.approx(seconds, rel=0.1)
    assert gaps[1] == pytest.approx(2 * seconds, rel=0.1)


def test_more_chips_of_a_phase_share_its_work() -> None:
    """
    Two prefill chips compute two prompts at once.
    """
    planned = [request(60, 2), request(60, 2)]
    rules = Rules(max_num_batched_tokens=60)

    for num_prefill, waits in ((1, True), (2, False)):
        pool = Pool(design("disaggregated", prefill=rules, num_prefill=num_prefill))
        ttfts = sorted(each.ttft for each in open_loop([pool], planned))
        assert (ttfts[1] > 1.5 * ttfts[0]) == waits
        assert [name for name, _ in pool.rooms] == ["prefill"] * num_prefill + [
            "decode"
        ]


def test_clients_of_a_closed_loop_ask_when_they_were_answered() -> None:
    """
    Never more at once than there are clients, and none of them idle.
    """
    planned = [request(20, n) for n in range(1, 13)]

    outcomes = closed_loop(Pool(design("semi")), planned, num_clients=3)

    def num_open(at: float) -> int:
        return sum(each.sent <= at < each.times[-1] for each in outcomes)

    assert len(outcomes) == 12
    assert max(num_open(each.sent) for each in outcomes) == 3
    asked = sorted(each.sent for each in outcomes)
    ended = sorted(each.times[-1] for each in outcomes)
    assert asked[3:] == ended[:9]


@kinds
def test_a_token_more_is_no_event_more(kind: Kind) -> None:
    """
    What the simulator does for a request does not grow with its answer.
    """

    for num_output in (10, 100, 1000):
        planned = [request(50, num_output) for _ in range(50)]
        pool = Pool(design(kind))

        open_loop([pool], poisson(planned, 0.5, 0))

        assert pool.num_events <= 5 * 50
