"""A pool: its chips, its memory, and what happens when. From event to event.

fused: one worker does both phases. semi: a worker of each phase on one chip, over one
room. disaggregated: chips of each phase with rooms of their own, and links between them.
"""

from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Sequences

from bench.measures import Outcome
from bench.simulation.chip import Chip
from bench.simulation.control import Observations, Shares
from bench.simulation.cores import Cores
from bench.simulation.design import Design
from bench.simulation.link import Link
from bench.simulation.room import Room
from bench.simulation.sequence import Sequence
from bench.simulation.timers import NEVER, Timers
from bench.simulation.worker import Exits, Rules, Worker
from bench.workload import Planned

CROWDED = 2  # times as long takes what shares a core with a step


class Pool:
    """Its requests become outcomes; nothing is lost."""

    def __init__(self, design: Design) -> None:
        self.design = design
        self.outcomes: list[Outcome] = []
        self.shares: list[tuple[float, Shares]] = [(0.0, design.shares)]  # since when
        self.num_open = 0  # requests that came and did not end
        self.num_events = 0
        self.num_preempted = 0
        self.on_end: Callable[[float], None] = lambda now: None
        self._num_added = 0
        self._taken_in = 0.0  # when the latest request was
        self._waiting = deque[Sequence]()
        self._timers = Timers()
        self._links: list[Link] = []
        self.chips = self._built()
        self._workers = [worker for chip in self.chips for worker in chip.workers]
        self._seen = Observations()
        self._controller = design.controller() if design.controller else None
        self._is_watched = False

    @property
    def rooms(self) -> list[tuple[str, Room]]:
        """Of each chip, with what it is there for."""
        rooms = [chip.workers[0].room for chip in self.chips]
        if self.design.kind != "disaggregated":
            return [("both", room) for room in rooms]
        num_prefill = self.design.num_prefill
        phases = ["prefill"] * num_prefill + ["decode"] * self.design.num_decode
        return list(zip(phases, rooms, strict=True))

    @property
    def next_event(self) -> float:
        """When something happens next, or NEVER."""
        ends = min(worker.ends for worker in self._workers)
        return min(ends, self._timers.next)

    def add(self, planned: Planned, now: float) -> None:
        """A request comes; one that no memory could hold is refused at once."""
        sequence = Sequence(planned, self._num_added, now)
        self._num_added += 1
        if sequence.most > self.design.capacity:
            self.outcomes.append(sequence.outcome("longer than the memory"))
            self._timers.at(now, self.on_end)
            return
        self.num_open += 1
        self._seen.arrived(sequence)
        self._watch(now)
        device = self.design.costs.device
        self._taken_in = max(self._taken_in, now) + self._beside(device.door_seconds)
        then = self._taken_in + self._beside(device.request_seconds)
        self._timers.at(then, lambda at: self._line_up(sequence, at))

    def advance(self, until: float = NEVER) -> None:
        """Let happen what happens until then."""
        while (now := self.next_event) <= until and now < NEVER:
            self._step(now)
        assert until < NEVER or not self.num_open, "requests are stuck"

    def _step(self, now: float) -> None:
        self.num_events += 1
        for worker in self._workers:
            worker.settle(now)
        self._timers.run(now)
        # Who finishes may call another one between two of its steps.
        while any(worker.finish(now) for worker in self._workers):
            continue
        for link in self._links:
            link.start(now)
        for chip in self.chips:
            chip.start(now)

    def _built(self) -> list[Chip | Cores]:
        match self.design.kind:
            case "fused":
                return self._fused()
            case "semi":
                return self._semi()
            case "disaggregated":
                return self._disaggregated()

    def _fused(self) -> list[Chip | Cores]:
        worker = self._worker(
            self.design.decode,
            Room(self.design.capacity),
            self._waiting,
            lambda sequence, now: worker.join(sequence, now),
        )
        return [Chip([worker])]

    def _semi(self) -> list[Chip | Cores]:
        design, room = self.design, Room(self.design.capacity)
        decode = self._worker(design.decode, room, deque(), _nowhere)

        def hand_off(sequence: Sequence, now: float) -> None:
            then = now + self._beside(design.costs.device.handoff_seconds)
            self._timers.at(then, lambda at: decode.join(sequence, at))

        prefill = self._worker(design.prefill, room, self._waiting, hand_off)
        workers, num_cores = [prefill, decode], design.costs.device.num_cores
        if not num_cores:
            return [Chip(workers, design.shares)]

        def wake(at: float) -> None:
            self._timers.at(at, lambda _: None)

        return [Cores(workers, design.shares, num_cores, wake)]

    def _disaggregated(self) -> list[Chip | Cores]:
        design = self.design
        decoding = [
            self._worker(design.decode, Room(design.capacity), deque(), _nowhere)
            for _ in range(design.num_decode)
        ]
        prefilling = []
        for _ in range(design.num_prefill):
            room = Room(design.capacity)
            link = Link(room, decoding, self._timers, design.token_seconds)
            self._links.append(link)
            worker = self._worker(design.prefill, room, self._waiting, link.send)
            prefilling.append(worker)
        return [Chip([worker]) for worker in [*prefilling, *decoding]]

    def _worker(
        self,
        rules: Rules,
        room: Room,
        waiting: deque[Sequence],
        decode: Callable[[Sequence, float], None],
    ) -> Worker:
        def prefilled(sequence: Sequence, now: float) -> None:
            self._seen.began(sequence, now)
            decode(sequence, now)

        exits = Exits(prefilled, self._finished, self._preempted)
        return Worker(self.design.costs, rules, room, waiting, exits)

    def _beside(self, seconds: float) -> float:
        """Of work beside the engine. While steps have all cores it shares one of them."""
        is_crowded = self.design.costs.device.num_cores and all(
            chip.is_full for chip in self.chips
        )
        return CROWDED * seconds if is_crowded else seconds

    def _line_up(self, sequence: Sequence, now: float) -> None:
        self._waiting.append(sequence)
        for worker in self._workers:
            if worker.waiting is self._waiting:
                worker.call(now)

    def _finished(self, sequence: Sequence, now: float) -> None:
        self._seen.began(sequence, now)  # a single token is also the last
        self.outcomes.append(outcome := sequence.outcome())
        self.num_open -= 1
        self._seen.ended(outcome)
        self.on_end(now)

    def _preempted(self, sequence: Sequence) -> None:
        self.num_preempted += 1
        self._waiting.appendleft(sequence)

    def _watch(self, now: float) -> None:
        """Decide at the end of a window; where nothing is open there is none."""
        if self._controller and not self._is_watched:
            self._is_watched = True
            self._timers.at(now + self.design.window_seconds, self._decide)

    def _decide(self, now: float) -> None:
        assert self._controller, "nobody watches"
        (chip,) = self.chips
        window = self._seen.window(now, self.design.window_seconds, chip.shares)
        chip.shares = self._controller.decide(window)
        if chip.shares != window.shares:
            self.shares.append((now, chip.shares))
        self._is_watched = False
        if self.num_open:
            self._watch(now)


def _nowhere(sequence: Sequence, now: float) -> None:
    raise AssertionError("a decode worker has no prompts")


def open_loop(pools: Sequences[Pool], planned: Sequences[Planned]) -> list[Outcome]:
    """Each request at its time, to the pool with the fewest open ones."""
    for each in sorted(planned, key=lambda one: one.at):
        for pool in pools:
            pool.advance(each.at)
        min(pools, key=lambda pool: pool.num_open).add(each, each.at)
    for pool in pools:
        pool.advance()
    return [outcome for pool in pools for outcome in pool.outcomes]


def closed_loop(
    pool: Pool, planned: Sequences[Planned], num_clients: int
) -> list[Outcome]:
    """So many clients; each asks again as soon as it was answered."""
    remaining = iter(planned)

    def ask(now: float) -> None:
        if (each := next(remaining, None)) is not None:
            pool.add(each, now)

    pool.on_end = ask
    for _ in range(num_clients):
        ask(0.0)
    pool.advance()
    return pool.outcomes
