"""What was seen of requests, and what the field's measures make of it.

TTFT is the time from sending a request to its first token, TPOT the time per further
token, (E2E - TTFT) / (output tokens - 1), ITL a gap between two pieces of an answer, and
goodput the requests per second that met all their SLOs.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median

from pydantic import BaseModel


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request as its client saw it; times in seconds of one clock."""

    sent: float
    times: tuple[float, ...]  # when each piece of the answer came
    num_prompt_tokens: int
    num_output_tokens: int
    error: str = ""

    @property
    def is_answered(self) -> bool:
        return bool(self.times) and not self.error

    @property
    def ttft(self) -> float:
        return self.times[0] - self.sent

    @property
    def e2e(self) -> float:
        return self.times[-1] - self.sent

    @property
    def tpot(self) -> float | None:
        """None for an answer of one token."""
        if self.num_output_tokens < 2:
            return None
        return (self.e2e - self.ttft) / (self.num_output_tokens - 1)

    @property
    def itls(self) -> list[float]:
        return [after - before for before, after in pairwise(self.times)]


def pause(
    times: Sequence[float], everyone: Iterable[Sequence[float]]
) -> tuple[float, int]:
    """The longest of one stream: its seconds, and the steps that it missed meanwhile,
    which are the tokens that another stream got, but for the one that all get.

    Times are those of tokens, at least two; the time to the first token is no pause.
    """
    began, ended = max(pairwise(times), key=lambda gap: gap[1] - gap[0])
    gained = max(sum(began < t <= ended for t in others) for others in everyone)
    return ended - began, gained - 1


@dataclass(frozen=True, slots=True)
class SLO:
    """Limits in seconds; None is no limit."""

    ttft: float | None = None
    tpot: float | None = None

    def is_met(self, outcome: Outcome) -> bool:
        if not outcome.is_answered:
            return False
        is_prompt = self.ttft is None or outcome.ttft <= self.ttft
        return is_prompt and (self.tpot is None or (outcome.tpot or 0) <= self.tpot)


class Distribution(BaseModel, frozen=True):
    """Of times, in milliseconds."""

    mean: float
    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, seconds: Iterable[float]) -> "Distribution | None":
        """None of nothing."""
        ordered = sorted(1000 * each for each in seconds)
        if not ordered:
            return None
        return cls(
            mean=fmean(ordered),
            p50=quantile(ordered, 0.5),
            p90=quantile(ordered, 0.9),
            p99=quantile(ordered, 0.99),
        )


def quantile(ordered: Sequence[float], share: float) -> float:
    """Linear between the two nearest values, as numpy's default."""
    position = share * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


class Run(BaseModel, frozen=True):
    """One run of a workload. Throughput and goodput are per second."""

    seconds: float
    num_requests: int
    num_failed: int
    num_prompt_tokens: int
    num_output_tokens: int
    requests_per_second: float
    output_tokens_per_second: float
    goodput: float
    ttft_ms: Distribution | None
    tpot_ms: Distribution | None
    itl_ms: Distribution | None
    e2e_ms: Distribution | None
    errors: tuple[str, ...]  # different ones, a few


MAX_ERRORS = 5


def measured(outcomes: Sequence[Outcome], slo: SLO) -> Run:
    """From the first request's sending to the last answer's end."""
    answered = [each for each in outcomes if each.is_answered]
    first = min((each.sent for each in outcomes), default=0.0)
    last = max((each.times[-1] for each in answered), default=first)
    seconds = last - first
    rate = 1 / seconds if seconds > 0 else 0.0
    num_output_tokens = sum(each.num_output_tokens for each in answered)
    return Run(
        seconds=seconds,
        num_requests=len(outcomes),
        num_failed=len(outcomes) - len(answered),
        num_prompt_tokens=sum(each.num_prompt_tokens for each in answered),
        num_output_tokens=num_output_tokens,
        requests_per_second=len(answered) * rate,
        output_tokens_per_second=num_output_tokens * rate,
        goodput=sum(map(slo.is_met, outcomes)) * rate,
        ttft_ms=Distribution.of(each.ttft for each in answered),
        tpot_ms=Distribution.of(
            each.tpot for each in answered if each.tpot is not None
        ),
        itl_ms=Distribution.of(gap for each in answered for gap in each.itls),
        e2e_ms=Distribution.of(each.e2e for each in answered),
        errors=tuple(dict.fromkeys(e.error for e in outcomes if e.error))[:MAX_ERRORS],
    )


class Spread(BaseModel, frozen=True):
    """A figure of several runs."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(median=median(values), least=min(values), most=max(values))
