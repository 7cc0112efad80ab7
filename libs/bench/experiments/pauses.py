"""How long streams stood still while something happened."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from math import inf
from statistics import median

from pydantic import BaseModel

from bench.measures import Outcome, pause


class Pauses(BaseModel, frozen=True):
    """The longest pause of each stream, over all streams."""

    num_streams: int
    ms_median: float
    ms_most: float
    steps_missed_median: float
    steps_missed_most: int


def paused(
    outcomes: Sequence[Outcome], began: float = -inf, ended: float = inf
) -> Pauses | None:
    """Of streams that were open between these times, in pauses that reach between them;
    None if there was none.
    """
    everyone = [each.times for each in outcomes]
    seen = [_reaching(each, began, ended) for each in everyone]
    pauses = [pause(times, everyone) for times in seen if len(times) > 1]
    if not pauses:
        return None
    return Pauses(
        num_streams=len(pauses),
        ms_median=1000 * median(seconds for seconds, _ in pauses),
        ms_most=1000 * max(seconds for seconds, _ in pauses),
        steps_missed_median=median(missed for _, missed in pauses),
        steps_missed_most=max(missed for _, missed in pauses),
    )


def _reaching(times: Sequence[float], began: float, ended: float) -> Sequence[float]:
    """With the last one before and the first one after, where there are such."""
    first, last = bisect_right(times, began), bisect_left(times, ended)
    return times[max(0, first - 1) : last + 1]
