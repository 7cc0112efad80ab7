"""KV transfer of disaggregated pools: whole sequences, one after another."""

from collections import deque
from collections.abc import Sequence as Sequences

from bench.simulation.room import Room
from bench.simulation.sequence import Sequence
from bench.simulation.timers import Timers
from bench.simulation.worker import Worker


class Link:
    """From one prefill chip to the decode chips. Who waits for it keeps its room."""

    def __init__(
        self, source: Room, targets: Sequences[Worker], timers: Timers, token: float
    ) -> None:
        self._source = source
        self._targets = targets
        self._timers = timers
        self._token_seconds = token
        self._queue = deque[Sequence]()
        self._is_busy = False

    def send(self, sequence: Sequence, now: float) -> None:
        self._queue.append(sequence)

    def start(self, now: float) -> None:
        """The first in line goes when the roomiest decode chip has room for it."""
        if self._is_busy or not self._queue:
            return
        target = max(self._targets, key=lambda worker: worker.room.free)
        sequence = self._queue[0]
        if not target.room.admit(sequence.num_computed):
            return
        self._queue.popleft()
        self._is_busy = True
        seconds = sequence.num_computed * self._token_seconds
        self._timers.at(now + seconds, lambda at: self._arrive(sequence, target, at))

    def _arrive(self, sequence: Sequence, target: Worker, now: float) -> None:
        self._is_busy = False
        self._source.give(sequence.num_computed)
        target.join(sequence, now)
