"""Windows until they say something together. Pure.

A percentile of few samples is the slowest of them: some are always slow.
"""

from collections import deque
from collections.abc import Sequence

from gateway.windows import Window

LEAST = 4  # samples of a kind; fewer say nothing about a percentile
ENOUGH = 10  # with as many nobody waits for more
MOST = 4  # windows; older ones say nothing of now


class Evidence:
    """What was seen since the last look."""

    def __init__(self) -> None:
        self._windows: deque[Window] = deque(maxlen=MOST)

    def add(self, window: Window) -> Window | None:
        """All as one, if that is enough for a look; then the next one begins."""
        self._windows.append(window)
        together = joined(self._windows)
        is_last = len(self._windows) == MOST and num_samples(together) >= LEAST
        if not is_last and num_samples(together) < ENOUGH:
            return None
        self.clear()
        return together

    def clear(self) -> None:
        self._windows.clear()


def num_samples(window: Window) -> int:
    """Of the kind that has more of them."""
    return max(len(window.ttfts), len(window.tpots))


def joined(windows: Sequence[Window]) -> Window:
    """One after another, under the shares of the last one; the load is their mean."""
    return Window(
        shares=windows[-1].shares,
        ttfts=[ttft for each in windows for ttft in each.ttfts],
        tpots=[tpot for each in windows for tpot in each.tpots],
        load=sum(each.load for each in windows) / len(windows),
        num_begun=sum(each.num_begun for each in windows),
        num_ended=sum(each.num_ended for each in windows),
    )
