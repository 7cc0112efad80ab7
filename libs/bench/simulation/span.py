"""Steps of one batch, computed as one: time is found by arithmetic, not step by step."""

from math import sqrt

from bench.simulation.costs import Pace


class Span:
    """So many steps, one after another; how fast they are may change on the way."""

    def __init__(self, now: float, num_steps: int, pace: Pace) -> None:
        self.num_steps = num_steps  # still to be done, the current one included
        self._since = now
        self._begun = 0.0  # how much of the current step was done at that time
        self._pace = pace

    @property
    def ends(self) -> float:
        return self._since + self._until(self.num_steps)

    def settle(self, now: float) -> list[float]:
        """When the steps ended that did until now; the rest remains."""
        count = self.num_steps if now >= self.ends else self._count(now - self._since)
        if not count:
            return []
        times = [self._since + self._until(n) for n in range(1, count + 1)]
        first, more = self._pace
        self._since, self._begun = times[-1], 0.0
        self._pace = Pace(first + count * more, more)
        self.num_steps -= count
        return times

    def change(self, now: float, pace: Pace) -> None:
        """From now on, after `settle`: what is done of the current step stays done."""
        self._begun = min(1.0, self._begun + (now - self._since) / self._pace.first)
        self._since, self._pace = now, pace

    def limit(self, num_steps: int) -> None:
        """At most so many more, after `settle`; a step that has begun is ended."""
        self.num_steps = min(self.num_steps, num_steps)

    def stop(self, now: float) -> None:
        """After the current step, or at once between two."""
        is_between = self._begun == 0 and self._since == now
        self.limit(0 if is_between else 1)

    def _until(self, count: int) -> float:
        """Seconds until so many more steps are done."""
        first, more = self._pace
        return count * first + more * count * (count - 1) / 2 - self._begun * first

    def _count(self, elapsed: float) -> int:
        """Whole steps of that time: `_until` solved for the count, and rounded down."""
        if elapsed <= 0:
            return 0
        first, more = self._pace
        total = elapsed + self._begun * first
        linear = first - more / 2
        root = 2 * total / (linear + sqrt(linear * linear + 2 * more * total))
        count = min(int(root), self.num_steps)
        while count and self._until(count) > elapsed:
            count -= 1
        while count < self.num_steps and self._until(count + 1) <= elapsed:
            count += 1
        return count
