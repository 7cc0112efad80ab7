"""The measures of serving, on requests whose times are known."""

import numpy
import pytest

from bench.measures import SLO, Distribution, Outcome, Spread, measured, pause, quantile


def outcome(sent: float, *times: float, num_tokens: int = 0) -> Outcome:
    return Outcome(
        sent=sent,
        times=times,
        num_prompt_tokens=10,
        num_output_tokens=num_tokens or len(times),
    )


FAILED = Outcome(
    sent=1.0, times=(), num_prompt_tokens=10, num_output_tokens=0, error="HTTP 503"
)


def test_times_of_one_request() -> None:
    """
    TTFT counts from the sending, TPOT spreads the rest over the tokens after the first.
    """
    answer = outcome(10.0, 10.5, 10.7, 11.5)

    assert answer.ttft == pytest.approx(0.5)
    assert answer.e2e == pytest.approx(1.5)
    assert answer.tpot == pytest.approx(0.5)
    assert answer.itls == pytest.approx([0.2, 0.8])


def test_a_piece_may_have_several_tokens() -> None:
    """
    TPOT counts tokens as the server does, however they were sent.
    """
    answer = outcome(0.0, 1.0, 2.0, num_tokens=11)

    assert answer.tpot == pytest.approx(0.1)


def test_one_token_has_no_time_per_further_token() -> None:
    """
    An answer of one token has a TTFT and nothing else.
    """
    run = measured([outcome(0.0, 1.0)], SLO())

    assert run.ttft_ms is not None
    assert run.tpot_ms is None
    assert run.itl_ms is None


def test_a_run_lasts_from_the_first_sending_to_the_last_token() -> None:
    """
    Rates are per second of that; what failed counts as a request without tokens.
    """
    run = measured([outcome(1.0, 2.0, 3.0), outcome(2.0, 4.0, 5.0), FAILED], SLO())

    assert run.seconds == pytest.approx(4.0)
    assert run.num_requests == 3
    assert run.num_failed == 1
    assert run.num_prompt_tokens == 20
    assert run.output_tokens_per_second == pytest.approx(1.0)
    assert run.requests_per_second == pytest.approx(0.5)
    assert run.errors == ("HTTP 503",)


@pytest.mark.parametrize(
    ("slo", "num_good"),
    [
        (SLO(), 2),
        (SLO(ttft=0.6), 1),
        (SLO(tpot=0.2), 1),
        (SLO(ttft=0.6, tpot=0.2), 0),
    ],
)
def test_goodput_counts_who_met_all_limits(slo: SLO, num_good: int) -> None:
    """
    A request is good when its TTFT and its TPOT are; a failed one never is.
    """
    prompt_late = outcome(0.0, 1.0, 1.1)
    tokens_late = outcome(0.0, 0.5, 1.5)

    run = measured([prompt_late, tokens_late, FAILED], slo)

    assert run.goodput * run.seconds == pytest.approx(num_good)


def test_nothing_answered_is_no_error() -> None:
    """
    A server that refuses everything has rates of zero and no times.
    """
    run = measured([FAILED], SLO())

    assert run.output_tokens_per_second == run.goodput == 0
    assert run.e2e_ms is None


@pytest.mark.parametrize("share", [0, 0.3, 0.5, 0.9, 0.99, 1])
@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_quantiles_are_numpy_s(share: float, count: int) -> None:
    """
    Between two values they are linear.
    """
    values = sorted(numpy.random.default_rng(count).random(count).tolist())

    assert quantile(values, share) == pytest.approx(numpy.quantile(values, share))


def test_distributions_are_in_milliseconds() -> None:
    """
    Seconds go in; the order does not matter.
    """
    found = Distribution.of([0.003, 0.001, 0.002])

    assert found is not None
    assert (found.mean, found.p50) == pytest.approx((2, 2))
    assert Distribution.of([]) is None


def test_a_spread_is_of_the_repeats() -> None:
    """
    The figure of several runs is their median, and how far they are apart.
    """
    spread = Spread.of([3.0, 1.0, 2.0])

    assert (spread.median, spread.least, spread.most) == (2.0, 1.0, 3.0)


def test_a_pause_is_counted_in_the_steps_of_others() -> None:
    """
    While one stream waited others got tokens; who waits with all misses nothing.
    """
    stuck, running = (1.0, 1.1, 1.5, 1.6), (1.0, 1.1, 1.2, 1.3, 1.4, 1.5)

    seconds, missed = pause(stuck, [stuck, running])
    _, together = pause(stuck, [stuck, stuck])

    assert seconds == pytest.approx(0.4)
    assert (missed, together) == (3, 0)
