"""What a gateway measures while answers stream."""

from dataclasses import dataclass

import pytest

from gateway.latencies import MAX_SAMPLES, SAMPLE_TOKENS, Meter
from protocol.messages import Latencies


@dataclass(eq=False)
class Asked:
    """A request whose tokens come when a test says so."""

    arrived_at: float = 0.0
    num_prompt_tokens: int = 7
    first_token_at: float | None = None
    last_token_at: float | None = None
    num_received: int = 0

    def receive(self, at: float, count: int = 1) -> None:
        self.first_token_at = self.first_token_at or at
        self.last_token_at = at
        self.num_received += count


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def meter(clock: Clock) -> Meter:
    """Waiting counts from one second on, and a stream that stands still for a half."""
    return Meter(1.0, 0.5, clock)


def test_a_stream_counts_again_and_again(meter: Meter) -> None:
    """
    Its first token once, and the time of a token since it was counted last.
    """
    request = Asked(arrived_at=1.0)

    with meter.measuring(request):
        request.receive(at=1.5)
        request.receive(at=3.5, count=SAMPLE_TOKENS)
        first = meter.take()
        request.receive(at=11.5, count=SAMPLE_TOKENS)
        request.receive(at=20.0)
        second = meter.take()
    third = meter.take()

    assert first == Latencies(
        ttfts=(0.5,), tpots=(0.25,), num_prompt_tokens=7, num_begun=1
    )
    assert second == Latencies(tpots=(16.5 / (SAMPLE_TOKENS + 1),))
    assert third == Latencies(num_ended=1)


def test_a_single_gap_is_no_tpot(meter: Meter) -> None:
    """
    A token that came late, beside somebody's prompt, counts with those after it.
    """
    request = Asked()

    with meter.measuring(request):
        request.receive(at=0.5)
        request.receive(at=0.9)
        early = meter.take()
        request.receive(at=1.3, count=SAMPLE_TOKENS - 1)
        late = meter.take()

    assert early.tpots == ()
    assert late.tpots == (pytest.approx(0.1),)


def test_what_ended_counts_too(meter: Meter) -> None:
    """
    A request that came and went between two looks is not forgotten.
    """
    request = Asked()

    with meter.measuring(request):
        request.receive(at=0.5, count=3)
        request.receive(at=1.0, count=2)

    assert meter.take() == Latencies(
        ttfts=(0.5,), tpots=(0.125,), num_prompt_tokens=7, num_begun=1, num_ended=1
    )


def test_who_waits_too_long_is_seen_before_an_answer(
    meter: Meter, clock: Clock
) -> None:
    """
    A pool that answers nobody any more shows how long everybody waits by now; streams
    count as soon as their TPOT cannot be within the limit any more.
    """
    waiting, stalled = Asked(), Asked()

    with meter.measuring(waiting), meter.measuring(stalled):
        stalled.receive(at=0.25)
        clock.now = 0.6
        early = meter.take()
        clock.now = 2.25
        late = meter.take()
        clock.now = 0.25 + SAMPLE_TOKENS
        latest = meter.take()

    assert (early.ttfts, early.tpots) == ((0.25,), ())
    assert (late.ttfts, late.tpots) == ((2.25,), ())
    assert latest.tpots == (1.0,)


def test_who_left_early_counts_as_nothing(meter: Meter) -> None:
    """
    A client that went before the first token says nothing of the pool.
    """
    with meter.measuring(Asked()):
        pass

    assert meter.take() == Latencies(num_prompt_tokens=7)


def test_of_too_many_samples_some_are_told(meter: Meter) -> None:
    """
    A message has a bounded size, however many requests there were.
    """
    for number in range(2 * MAX_SAMPLES + 1):
        request = Asked()
        with meter.measuring(request):
            request.receive(at=float(number + 1))

    taken = meter.take()

    assert MAX_SAMPLES / 2 < len(taken.ttfts) <= MAX_SAMPLES
    assert max(taken.ttfts) > 2 * MAX_SAMPLES - 3
