"""What passes between the event loop and the engine's thread. Knows no Redis, no store.

    event loop  ── Work: jobs, and what became of earlier words ──>  engine's thread
    event loop  <── Settled: jobs that the store knows of ─────────  engine's thread

The thread goes from round to round without waiting for the loop, which hears of a round
only what it has to do something about: to wake it at each step would cost more than the
step has to say.
"""

import asyncio
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from protocol.messages import DecodeJob, PrefillJob, TokenEvent
from worker.sequence import Sequence

IDLE_SECONDS = 1.0  # an idle thread looks up this often


@dataclass(slots=True)
class Work:
    """What there is for the next round."""

    jobs: list[PrefillJob | DecodeJob] = field(default_factory=list)
    told: list[Sequence] = field(default_factory=list)  # ended, and their clients know
    gone: set[str] = field(default_factory=set)  # gateways that are gone

    def __bool__(self) -> bool:
        return bool(self.jobs or self.told or self.gone)


@dataclass(slots=True)
class Outcome:
    """What one round has to say."""

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


class Settled(NamedTuple):
    """What became of the loop's jobs since it last asked."""

    num_jobs: int  # that the store knows of now
    num_running: int  # sequences in the batch


class Exchange:
    """Both directions. `work`, `say` and `rest` are the thread's, `bring` is of both, and
    the rest is the loop's."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._changed = threading.Condition()
        self._work = Work()
        self._num_jobs = 0  # that the store knows of, and the loop does not know it
        self._num_running = 0
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

    async def settled(self) -> Settled | None:
        """All that was said since the last call, as one; None after the very last."""
        await self._has_news.wait()
        with self._changed:
            if self.has_ended and not self._num_jobs:
                return None
            if not self.has_ended:
                self._has_news.clear()
            num_jobs, self._num_jobs = self._num_jobs, 0
            return Settled(num_jobs, self._num_running)

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
        """Tell the loop what it has to know of a round, if anything."""
        if not outcome.num_jobs and outcome.num_running == self._num_running:
            return
        with self._changed:
            self._num_jobs += outcome.num_jobs
            self._num_running = outcome.num_running
        self._loop.call_soon_threadsafe(self._has_news.set)

    def rest(self, seconds: float) -> None:
        """Let the cores to others for so long, unless there is to be no more round."""
        if seconds > 0:
            with self._changed:
                self._changed.wait_for(lambda: self.is_stopping, seconds)

    def end(self) -> None:
        """The thread's last word."""
        with self._changed:
            self.has_ended = True
        self._loop.call_soon_threadsafe(self._has_news.set)
