"""A pool as queues: what the controller's shares do to requests, without computing any.

Prompts are computed one after the other, and all answers grow together, a token a step.
While both phases have work each goes at the speed of its share; alone at full speed. Of
the machine, not of the model of latencies that the controller has.
"""

import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from gateway.controller import Controller, Verdict
from gateway.splits import FIRST, WHOLE
from gateway.windows import Goals, Window
from protocol.messages import Shares

TICK_SECONDS = 0.005


@dataclass(frozen=True)
class Load:
    """What clients ask for."""

    rate: float  # requests per second
    prompt: int  # tokens of each prompt
    output: int  # tokens of each answer


@dataclass
class Request:
    arrived: float
    num_missing: float  # tokens of its prompt
    num_left: float  # tokens of its answer
    last_token: float = 0.0
    mark: float = 0.0  # when its first token of this window was due
    num_new: int = 0  # tokens in this window


@dataclass
class Machine:
    """How fast it is when a phase has all of it, and what is lost when both compete."""

    prompt_tokens_per_second: float = 10_000.0
    step_seconds: float = 0.01  # of a decode step, whatever its batch
    competing: float = 0.9  # of the machine's speed, where both may have everything


@dataclass
class Queues:
    """A pool that computes in simulated time."""

    machine: Machine
    chance: random.Random = field(default_factory=lambda: random.Random(5))
    now: float = 0.0
    waiting: deque[Request] = field(default_factory=deque)
    running: list[Request] = field(default_factory=list)
    _next: float = 0.0
    _progress: float = 0.0  # of the present decode step

    def window(self, load: Load, shares: Shares, seconds: float) -> Window:
        """Compute so long, and say what the clients saw."""
        ttfts: list[float] = []
        tpots: list[float] = []
        num_prompt_tokens, end = 0, self.now + seconds
        self._next = max(self._next, self.now)
        while self.now < end:
            self.now += TICK_SECONDS
            while load.rate and self._next < self.now:
                self.waiting.append(Request(self._next, load.prompt, load.output))
                num_prompt_tokens += load.prompt
                self._next += self.chance.expovariate(load.rate)
            prefill, decode = self._speeds(shares)
            self._prefill(prefill * TICK_SECONDS, ttfts)
            self._decode(decode * TICK_SECONDS, tpots)
        ttfts += [
            self.now - r.arrived for r in self.waiting if self.now - r.arrived > 1
        ]
        return Window(shares, ttfts, tpots, num_prompt_tokens / seconds)

    def _speeds(self, shares: Shares) -> tuple[float, float]:
        if not (self.waiting and self.running):
            return 1.0, 1.0
        if shares == WHOLE:
            return self.machine.competing / 2, self.machine.competing / 2
        return shares.prefill / 100, shares.decode / 100

    def _prefill(self, seconds: float, ttfts: list[float]) -> None:
        tokens = seconds * self.machine.prompt_tokens_per_second
        while tokens > 0 and self.waiting:
            first = self.waiting[0]
            done = min(tokens, first.num_missing)
            first.num_missing -= done
            tokens -= done
            if first.num_missing <= 0:
                first.last_token = first.mark = self.now
                ttfts.append(self.now - first.arrived)
                self.running.append(self.waiting.popleft())

    def _decode(self, seconds: float, tpots: list[float]) -> None:
        self._progress += seconds
        if not self.running or self._progress < self.machine.step_seconds:
            return
        self._progress -= self.machine.step_seconds
        for request in self.running:
            request.last_token = self.now
            request.num_new += 1
            request.num_left -= 1
            if request.num_left <= 0:
                _tell(request, tpots)
        self.running = [r for r in self.running if r.num_left > 0]


def _tell(request: Request, tpots: list[float]) -> None:
    """What its stream had a token, since the last window."""
    if request.num_new:
        tpots.append((request.last_token - request.mark) / request.num_new)
        request.mark, request.num_new = request.last_token, 0


@dataclass
class Run:
    """What became of a controlled pool, window after window."""

    windows: list[Window] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    pressures: list[float] = field(default_factory=list)

    @property
    def shares(self) -> list[Shares]:
        return [verdict.shares for verdict in self.verdicts]

    @property
    def num_changes(self) -> int:
        pairs = zip(self.windows, self.verdicts, strict=True)
        return sum(window.shares != verdict.shares for window, verdict in pairs)

    @property
    def reasons(self) -> list[str]:
        return [verdict.reason for verdict in self.verdicts]


def steered(
    queues: Queues,
    goals: Goals,
    loads: Iterator[Load],
    shares: Shares = FIRST,
    seconds: float = 5.0,
) -> Run:
    """One load a window, and the controller's shares for the next one."""
    controller, run = Controller(goals), Run()
    for load in loads:
        window = queues.window(load, shares, seconds)
        verdict = controller.decide(window)
        run.windows.append(window)
        run.verdicts.append(verdict)
        run.pressures.append(window.at(goals.percentile).pressure(goals))
        shares = verdict.shares
    return run
