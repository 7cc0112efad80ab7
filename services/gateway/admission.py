"""The door: how many sequences may be open. Decides before anything costs time."""

from collections.abc import Iterator
from contextlib import contextmanager

from gateway.errors import Overloaded, Unavailable
from mesh import metrics


class Admission:
    """Counts open sequences and refuses those beyond the limit."""

    def __init__(self, max_open: int) -> None:
        self._max_open = max_open
        self._is_closed = False
        self.num_open = 0

    def close(self) -> None:
        """From now on nobody enters: the gateway stops."""
        self._is_closed = True

    @contextmanager
    def enter(self, count: int = 1) -> Iterator[None]:
        """Hold places; Unavailable or Overloaded if there are not so many."""
        self._check(count)
        self.num_open += count
        metrics.OPEN_REQUESTS.set(self.num_open)
        try:
            yield
        finally:
            self.num_open -= count
            metrics.OPEN_REQUESTS.set(self.num_open)

    def _check(self, count: int) -> None:
        if self._is_closed:
            raise Unavailable("The server is stopping.")
        if self.num_open + count > self._max_open:
            raise Overloaded("Too many requests are open. Please retry shortly.")
