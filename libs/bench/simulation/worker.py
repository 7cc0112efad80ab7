"""A worker's steps: a token for everyone who decodes, and prompts in turn.

The rules are much those of the real one (libs/worker/batch.py), but prompts go in the
order in which they came, as in the servers that we compare with. Steps that only decode are
computed many at a time: until somebody ends, joins or asks for room.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Literal

from bench.simulation.costs import (
    NOTHING,
    Costs,
    Pace,
    Share,
    Work,
    decoding,
    prompt,
)
from bench.simulation.room import Room
from bench.simulation.sequence import Sequence
from bench.simulation.span import Span

FOR_EVER = 1e9  # seconds


@dataclass(frozen=True, slots=True)
class Rules:
    """What fits into a step, and whether prompts go beside who decodes or before."""

    max_num_batched_tokens: int = 512
    max_num_seqs: int = 64
    prompts: Literal["beside", "before"] = "beside"


@dataclass(frozen=True, slots=True)
class Exits:
    """Where sequences go. Each is called between two steps."""

    prefilled: Callable[[Sequence, float], None]
    finished: Callable[[Sequence, float], None]
    preempted: Callable[[Sequence], None]


class Worker:
    """One worker. Between `take` and `finish` it computes."""

    def __init__(
        self,
        costs: Costs,
        rules: Rules,
        room: Room,
        waiting: deque[Sequence],
        exits: Exits,
    ) -> None:
        self._costs = costs
        self._rules = rules
        self.room = room
        self.waiting = waiting  # prompts without room; workers may have one line
        self._exits = exits
        self._prompts: list[Sequence] = []
        self._joining = deque[Sequence]()
        # Who decodes, and how many steps had been done when it joined.
        self._decoding: dict[Sequence, int] = {}
        self._ending: list[tuple[int, int, Sequence]] = []  # a heap: by their last step
        self._ticks: list[float] = []  # when each step ended in which someone decoded
        self._context = 0  # tokens of everyone who decodes
        self._chunks: list[tuple[Sequence, int]] = []
        self._num_stepping = 0  # who decodes in the current steps: all or nobody
        self._span: Span | None = None
        self._work = NOTHING

    @property
    def is_busy(self) -> bool:
        return self._work is not NOTHING

    @property
    def ends(self) -> float:
        return self._span.ends if self._span else float("inf")

    def demand(self, cap: float) -> float:
        """What part of a chip it keeps from another one, if it may have no more."""
        return self._costs.demand(self._work, cap)

    @property
    def num_open(self) -> int:
        """Sequences here; the line may be several workers'."""
        return len(self._prompts) + len(self._joining) + len(self._decoding)

    @property
    def has_sequences(self) -> bool:
        return bool(self.num_open or self.waiting)

    def join(self, sequence: Sequence, now: float) -> None:
        """It decodes from the next step on; its K and V are in the room."""
        self._joining.append(sequence)
        self.call(now)

    def call(self, now: float) -> None:
        """There is something to look at: no more steps than the current one."""
        if self._span and not self._chunks:
            self._span.stop(now)

    def settle(self, now: float) -> None:
        """Count what was done until now."""
        if self._span and (times := self._span.settle(now)) and self._num_stepping:
            self._ticks += times
            grown = len(times) * self._num_stepping
            self._context += grown
            self.room.grow(grown)

    def finish(self, now: float) -> bool:
        """Whether the last of the steps ended; everyone then goes where it belongs."""
        if not self._span or self._span.num_steps:
            return False
        self._span, self._work = None, NOTHING
        for sequence, num_tokens in self._chunks:
            sequence.num_computed += num_tokens
            if sequence.num_computed == sequence.num_prompt:
                self._prompts.remove(sequence)
                sequence.times.append(now)
                self._sampled(sequence, now)
        self._chunks = []
        while self._ending and self._ending[0][0] <= len(self._ticks):
            last, _, sequence = heappop(self._ending)
            if self._last_step(sequence) == last:  # it was not preempted meanwhile
                self._leave(sequence)
                self._end(sequence, now)
        return True

    def take(self) -> bool:
        """Whether there is something to compute; `begin` then computes it."""
        self._take_joining()
        chunks = self._take_prompts()
        waits = bool(chunks) and self._rules.prompts == "before"
        self._num_stepping = 0 if waits else self._make_room()
        self._chunks = [(sequence, num) for sequence, num, _ in chunks]
        work = NOTHING
        if self._num_stepping:
            work = decoding(self._num_stepping, self._context)
        for _, _, chunk in chunks:
            work = work.beside(chunk)
        self._work = work
        return self.is_busy

    def begin(self, now: float, share: Share, *, most: int | None = None) -> None:
        """At most so many steps."""
        num_steps = self._num_steps()
        num_steps = num_steps if most is None else min(num_steps, most)
        self._span = Span(now, num_steps, self._costs.pace(self._work, share))

    def change(self, now: float, share: Share) -> None:
        """Its part of the device is another, from now on."""
        assert self._span, "nothing is computed"
        if self._num_stepping and not self._chunks:
            self._work = decoding(self._num_stepping, self._context)
        self._span.change(now, self._costs.pace(self._work, share))

    def pause(self, now: float) -> None:
        """It has nothing of the device until there is another `change`."""
        assert self._span, "nothing is computed"
        self._span.change(now, Pace(FOR_EVER, 0.0))

    def limit(self) -> None:
        """Others took room: no more steps than there is some for."""
        if self._span and self._num_stepping:
            self._span.limit(max(1, self.room.free // self._num_stepping))

    def _num_steps(self) -> int:
        if self._chunks:
            return 1
        until_end = self._ending[0][0] - len(self._ticks)
        return min(until_end, self.room.free // self._num_stepping)

    def _take_joining(self) -> None:
        while self._joining and len(self._decoding) < self._rules.max_num_seqs:
            self._decode(self._joining.popleft())

    def _take_prompts(self) -> list[tuple[Sequence, int, Work]]:
        """Chunks for what the budget has left, the first come first."""
        is_beside = self._rules.prompts == "beside"
        budget = self._rules.max_num_batched_tokens
        budget -= len(self._decoding) if is_beside else 0
        chunks = []
        for sequence in self._prompts:
            if budget <= 0:
                break
            chunks.append(self._chunk(sequence, budget))
            budget -= chunks[-1][1]
        while budget > 0 and self.waiting and self.num_open < self._rules.max_num_seqs:
            if not self.room.admit(self.waiting[0].num_prompt):
                break
            sequence = self.waiting.popleft()
            self._prompts.append(sequence)
            chunks.append(self._chunk(sequence, budget))
            budget -= chunks[-1][1]
        return chunks

    def _chunk(self, sequence: Sequence, budget: int) -> tuple[Sequence, int, Work]:
        left = sequence.num_prompt - sequence.num_computed
        num_tokens = min(left, budget)
        is_last = num_tokens == left
        return (
            sequence,
            num_tokens,
            prompt(num_tokens, sequence.num_computed, is_last=is_last),
        )

    def _make_room(self) -> int:
        """How many can decode: the youngest give up their blocks until the rest can."""
        while len(self._decoding) > max(1, self.room.free):
            youngest = max(self._decoding, key=lambda each: each.number)
            self._leave(youngest)
            self.room.give(youngest.num_computed)
            youngest.forget()
            self._exits.preempted(youngest)
        return len(self._decoding) if self.room.free else 0

    def _sampled(self, sequence: Sequence, now: float) -> None:
        if sequence.num_remaining:
            self._exits.prefilled(sequence, now)
        else:
            self._end(sequence, now)

    def _end(self, sequence: Sequence, now: float) -> None:
        self.room.give(sequence.num_computed)
        self._exits.finished(sequence, now)

    def _decode(self, sequence: Sequence) -> None:
        self._decoding[sequence] = len(self._ticks)
        self._context += sequence.num_computed
        self.room.num_growing += 1
        last = self._last_step(sequence)
        assert last, "it decodes"
        heappush(self._ending, (last, sequence.number, sequence))

    def _last_step(self, sequence: Sequence) -> int | None:
        """None of one that does not decode here."""
        joined = self._decoding.get(sequence)
        return None if joined is None else joined + sequence.num_remaining

    def _leave(self, sequence: Sequence) -> None:
        joined = self._decoding.pop(sequence)
        sequence.num_computed += len(self._ticks) - joined
        sequence.times += self._ticks[joined:]
        self._context -= sequence.num_computed
        self.room.num_growing -= 1
