"""What a system does for one request at a time: its latencies, from which SLOs follow."""

from collections.abc import Awaitable, Callable, Sequence
from statistics import fmean

from pydantic import BaseModel

from bench.load import closed_loop
from bench.measures import SLO, Outcome
from bench.workload import Planned
from mesh.errors import ConfigurationError

TTFT_FACTOR, TPOT_FACTOR = (
    7.5,
    10.0,
)  # SLOs by unloaded latencies, as in semi-PD's paper


class Unloaded(BaseModel, frozen=True):
    """Means of requests that had the system to themselves, in seconds."""

    ttft: float
    tpot: float
    e2e: float

    def slos(self, given: SLO) -> tuple[float, float]:
        """Of TTFT and TPOT: what was given, and of the rest what the paper takes."""
        return (
            given.ttft or TTFT_FACTOR * self.ttft,
            given.tpot or TPOT_FACTOR * self.tpot,
        )


async def unloaded(
    planned: Sequence[Planned], ask: Callable[[Planned], Awaitable[Outcome]]
) -> Unloaded:
    """The first request only warms up. ConfigurationError if one is not answered."""
    _, *outcomes = await closed_loop(planned, ask, num_clients=1)
    for outcome in outcomes:
        if not outcome.is_answered:
            reason = outcome.error or "an answer without a token"
            raise ConfigurationError(f"a request that had the system alone: {reason}")
    return Unloaded(
        ttft=fmean(each.ttft for each in outcomes),
        tpot=fmean(each.tpot for each in outcomes if each.tpot is not None),
        e2e=fmean(each.e2e for each in outcomes),
    )
