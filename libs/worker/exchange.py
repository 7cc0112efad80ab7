"""What passes between the event loop and the engine's thread. Knows no Redis, no store.

    event loop  ── Work: jobs, and what became of earlier words ──>  engine's thread
    event loop  <── Outcome: what a round said ────────────────────  engine's thread

The thread goes from round to round without waiting for the loop, at most a few rounds
ahead of what was told.
"""

import asyncio
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field

from protocol.messages import DecodeJob, PrefillJob, TokenEvent
from worker.sequence import Sequence

IDLE_SECONDS = 1.0  # an idle thread looks up this often
MAX_UNTOLD = 4  # rounds that may wait to be told; then the engine waits for Redis


@dataclass(slots=True)
class Work:
    """What the loop has for the next round."""

    jobs: list[PrefillJob | DecodeJob] = field(default_factory=list)
    told: list[Sequence] = field(default_factory=list)  # ended, and their clients know
    gone: set[str] = field(default_factory=set)  # gateways that are gone

    def __bool__(self) -> bool:
        return bool(self.jobs or self.told or self.gone)


@dataclass(slots=True)
class Outcome:
    """What one round, or several, have to say."""

    events: dict[str, list[TokenEvent]] = field(default_factory=dict)  # by gateway
    finished: list[Sequence] = field(default_factory=list)  # to be told as `Work.told`
    num_jobs: int = 0  # jobs that the store now knows of
    num_running: int = 0  # sequences in the batch after it

    def say(self, sequence: Sequence) -> None:
        """Tell what is new in a sequence, and whether that was its end."""
        if event := sequence.publish():
            self.events.setdefault(sequence.reply_to, []).append(event)
            if event.finish_reason:
                self.finished.append(sequence)

    def extend(self, later: "Outcome") -> None:
        """Add the words of a later round."""
        for gateway, events in later.events.items():
            self.events.setdefault(gateway, []).extend(events)
        self.finished.extend(later.finished)
        self.num_jobs += later.num_jobs
        self.num_running = later.num_running


class Exchange:
    """Both directions. `work`, `say` and `rest` are the thread's, the rest is the loop's."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._changed = threading.Condition()
        self._work = Work()
        self._untold: list[Outcome] = []
        self._has_news = asyncio.Event()
        self.is_stopping = False
        self.has_ended = False

    def bring(
        self,
        jobs: Iterable[PrefillJob | DecodeJob] = (),
        told: Iterable[Sequence] = (),
        gone: Iterable[str] = (),
    ) -> None:
        """Something for the next round."""
        with self._changed:
            self._work.jobs.extend(jobs)
            self._work.told.extend(told)
            self._work.gone.update(gone)
            self._changed.notify()

    async def outcome(self) -> Outcome | None:
        """All that was said since the last call, as one; None after the very last."""
        while not self._untold and not self.has_ended:
            self._has_news.clear()
            await self._has_news.wait()
        with self._changed:
            untold, self._untold = self._untold, []
            self._changed.notify()
        if not untold:
            return None
        whole, *later = untold
        for outcome in later:
            whole.extend(outcome)
        return whole

    def stop(self) -> None:
        """No more rounds."""
        with self._changed:
            self.is_stopping = True
            self._changed.notify()

    def work(self, *, is_idle: bool) -> Work:
        """What the loop brought; an idle thread waits a while for it."""
        with self._changed:
            if is_idle:
                self._changed.wait_for(
                    lambda: self._work or self.is_stopping, IDLE_SECONDS
                )
            work, self._work = self._work, Work()
        return work

    def say(self, outcome: Outcome) -> None:
        """Hand a round's words over; waits while too many are untold."""
        with self._changed:
            self._changed.wait_for(
                lambda: len(self._untold) < MAX_UNTOLD or self.is_stopping
            )
            self._untold.append(outcome)
        self._loop.call_soon_threadsafe(self._has_news.set)

    def rest(self, seconds: float) -> None:
        """Let the cores to others for so long, unless there is to be no more round."""
        if seconds > 0:
            with self._changed:
                self._changed.wait_for(lambda: self.is_stopping, seconds)

    def end(self) -> None:
        """The thread's last word."""
        self.has_ended = True
        self._loop.call_soon_threadsafe(self._has_news.set)
