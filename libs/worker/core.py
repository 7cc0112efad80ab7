"""A worker's step: store, batch and engine in one synchronous round. No asyncio.

Everything here runs on one thread, so that the store hears of a step exactly between
two steps: at that moment this process writes to no block. Where an engine computes by
itself, a round's words go out while its next step is under way.
"""

import time
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Sequences
from dataclasses import dataclass

from engine.interface import Chunk, Drawn, Ending, Engine
from kv.client import StoreClient
from kv.operations import EVERYTHING, Advanced, Part, Record
from mesh import metrics
from protocol.messages import DecodeJob, Phase, PrefillJob
from worker.batch import Batch
from worker.exchange import Outcome, Work
from worker.pace import Pace
from worker.rest import rest_seconds
from worker.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Step:
    """One that an engine computes by itself."""

    scheduled: list[tuple[Sequence, Chunk]]
    end: Ending
    started: float  # monotonic seconds


class Core:
    """One worker's sequences and how they advance."""

    def __init__(
        self,
        store: StoreClient,
        engine: Engine,
        batch: Batch,
        phases: frozenset[Phase],
        cores: int = 0,
    ) -> None:
        """`cores` are the host's, if it is they that compute."""
        self._store = store
        self._engine = engine
        self.phases = phases
        self.batch = batch
        self._cores = cores
        self._part = EVERYTHING
        self._pace = Pace(batch.max_num_batched_tokens)
        self._begun: Step | None = None
        self.rest_seconds = 0.0  # until the next round

    @property
    def percent(self) -> int:
        """Of the machine, for a step of its phase."""
        return self._part.percent

    @property
    def computes_on(self) -> str:
        """What that is, in words."""
        return self._engine.computes_on

    def round(self, work: Work, newer: Callable[[], Work] = Work) -> Outcome:
        """Take the jobs, compute one step, record it at the store.

        Or end and record the step that the last round began, and begin one with the jobs:
        what has ended is told before anything is waited for again. `newer` tells what came
        while it waited for its turn to compute. Ended sequences are released only when their
        clients know of it: an owner that dies earlier leaves them to one who will tell.
        """
        outcome = Outcome()
        has_ended = self._end_begun(outcome)
        self._take_all(work, outcome)
        self.rest_seconds = 0.0
        if len(self.batch):
            self._step(newer, outcome, may_wait=not has_ended)
        else:
            self._store.check()  # an idle worker says nothing, and would not notice
        outcome.num_running = len(self.batch)
        return outcome

    def drain(self, work: Work) -> Outcome:
        """Leave everything to others, the jobs just read too."""
        outcome = Outcome()
        self._end_begun(outcome)
        self._take_all(work, outcome)
        self._park(self.batch.running)
        return outcome

    def _take_all(self, work: Work, outcome: Outcome) -> None:
        outcome.num_jobs += len(work.jobs)
        self._release(work.told)
        if work.gone:
            self._drop_all_of(work.gone)
        for job in work.jobs:
            self._take(job, outcome)

    def _drop_all_of(self, gateways: set[str]) -> None:
        """Give up sequences whose gateway is gone: with its clients, or moved."""
        dropped = [s for s in self.batch.running if s.reply_to in gateways]
        for sequence in dropped:
            self.batch.leave(sequence.request_id)
        if dropped:
            self._store.forget([sequence.held for sequence in dropped])

    def _release(self, sequences: Sequences[Sequence]) -> None:
        if sequences:
            self._store.release([sequence.held for sequence in sequences])

    def _take(self, job: PrefillJob | DecodeJob, outcome: Outcome) -> None:
        if job.deadline < time.time():
            self._store.cancel(job.request_id)
            return
        match job:
            case PrefillJob():
                answer = self._store.admit(job)
            case DecodeJob(request_id=request_id, generation=generation):
                answer = self._store.adopt(request_id, generation)
        if not isinstance(answer, Record):
            return  # it waits at the store for blocks, or is no longer ours to do
        self._share(answer.part)
        self._engine.copy_blocks(answer.copies)
        sequence = Sequence.from_record(answer)
        if sequence.finish_reason:
            # Its last owner recorded the end and died before it could tell.
            outcome.say(sequence)
        else:
            self.batch.join(sequence)

    def _step(
        self, newer: Callable[[], Work], outcome: Outcome, *, may_wait: bool
    ) -> None:
        """Begin the next step, or compute it where an engine does not by itself."""
        began = time.thread_time()  # on a core
        started = time.monotonic()
        with self._engine.turn(is_long=self.batch.has_prompts):
            self._take_all(newer(), outcome)
            if not (scheduled := self.batch.schedule(self._budget)):
                return
            chunks = [chunk for _, chunk in scheduled]
            if ending := self._engine.begin(chunks):
                self._begun = Step(scheduled, ending, started)
                return
            if not may_wait:
                return
            tokens = self._computed(chunks)
        self._record(scheduled, tokens, started)
        self.rest_seconds = rest_seconds(
            self._part,
            self._cores,
            time.thread_time() - began,
            time.monotonic() - started,
        )
        self._tell(scheduled, outcome)

    @property
    def _budget(self) -> int:
        """Tokens of the next step. A GPU's phases do not wait for each other's steps."""
        if not self._cores or self._part.percent == EVERYTHING.percent:
            return self.batch.max_num_batched_tokens
        return self._pace.turn_tokens

    def _computed(self, chunks: list[Chunk]) -> list[Drawn | None]:
        """A step's tokens. Where it is cores that compute `Pace` hears how long."""
        began = time.process_time()
        tokens = self._engine.step(chunks)
        if self._cores:
            seconds = (time.process_time() - began) / self._cores
            self._pace.see(sum(len(chunk.token_ids) for chunk in chunks), seconds)
        return tokens

    def _end_begun(self, outcome: Outcome) -> bool:
        """Whether there was a step under way, which has ended now."""
        step, self._begun = self._begun, None
        if step:
            self._record(step.scheduled, step.end(), step.started)
            self._tell(step.scheduled, outcome)
        return step is not None

    def _record(
        self,
        scheduled: list[tuple[Sequence, Chunk]],
        tokens: list[Drawn | None],
        started: float,
    ) -> None:
        progress = [
            sequence.apply(chunk, token)
            for (sequence, chunk), token in zip(scheduled, tokens, strict=True)
        ]
        can_wait = all(sequence.needs_nothing for sequence, _ in scheduled)
        if can_wait:
            advanced = self._store.note(progress)
        else:
            advanced = self._store.advance(progress, self._pace.pile_tokens)
        if advanced:
            self._apply(advanced)
        metrics.STEP_SECONDS.observe(time.monotonic() - started)

    def _tell(self, scheduled: list[tuple[Sequence, Chunk]], outcome: Outcome) -> None:
        """Say what is new, and let go whoever ended or is handed off."""
        handed_off = []
        for sequence, _ in scheduled:
            if not self.batch.holds(sequence):
                continue
            outcome.say(sequence)
            if self._hands_off(sequence):
                handed_off.append(sequence)
        for sequence in outcome.finished:
            self.batch.leave(sequence.request_id)
        self._park(s for s in handed_off if self.batch.holds(s))

    def _apply(self, advanced: Advanced) -> None:
        self._share(advanced.part)
        for request_id in advanced.gone:
            self.batch.leave(request_id)
        for growth in advanced.growth:
            if sequence := self.batch.get(growth.request_id):
                sequence.block_table.extend(growth.block_ids)

    def _share(self, part: Part) -> None:
        self._part = part
        self._engine.share(part.percent, part.num_peers)

    def _hands_off(self, sequence: Sequence) -> bool:
        return sequence.is_decoding and "decode" not in self.phases

    def _park(self, sequences: Iterable[Sequence]) -> None:
        sequences = list(sequences)
        if not sequences:
            return
        for sequence in sequences:
            self.batch.leave(sequence.request_id)
        self._store.park([sequence.held for sequence in sequences])
