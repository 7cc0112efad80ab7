"""The engine that is asked in process: how it is asked, and what is made of its answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace

import in_process
from in_process import Request

PROMPTS = [[number] for number in range(5)]
NUM_OUTPUT = 3


@dataclass
class Counting:
    """A request that is given one number at each step, and ends after some of them."""

    num_left: int
    unread: list[int] = field(default_factory=list)

    def can_read(self) -> bool:
        return bool(self.unread)

    def read(self) -> Mapping[int, in_process.Output]:
        return {0: SimpleNamespace(generated_ids=[self.unread.pop(0)])}

    def get_status(self) -> in_process.Status:
        return SimpleNamespace(name="RUNNING" if self.num_left else "FINISHED")


@dataclass
class CountingEngine:
    """Remembers how many requests each step had."""

    handles: list[Counting] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)

    def add(self, prompt: Sequence[int]) -> Counting:
        self.handles.append(Counting(NUM_OUTPUT))
        return self.handles[-1]

    def step(self) -> None:
        running = [each for each in self.handles if each.num_left]
        self.batches.append(len(running))
        for each in running:
            each.num_left -= 1
            each.unread.append(each.num_left)


def answered(sent: float, *times: float) -> Request:
    return Request(sent, Counting(0), list(times))


def test_so_many_are_asked_at_once_until_all_are_answered() -> None:
    """
    The next request is in the step after the one in which another ended.
    """
    engine = CountingEngine()

    ended = in_process.closed_loop(engine, PROMPTS, 2)

    assert engine.batches == [2] * 2 * NUM_OUTPUT + [1] * NUM_OUTPUT
    assert [len(each.times) for each in ended] == [NUM_OUTPUT] * len(PROMPTS)
    assert all(each.sent <= each.times[0] < each.times[-1] for each in ended)


def test_figures_are_those_of_the_benchmark() -> None:
    """
    TTFT from sending to the first token, TPOT per further one, all tokens by all time.
    """
    slow = [answered(1.0, 1.5, 2.0, 2.5), answered(1.0, 2.0, 2.5, 3.0)]
    fast = [answered(1.0, 1.25, 1.5, 1.75), answered(1.0, 1.25, 1.5, 2.0)]

    figures = in_process.report([slow, fast], NUM_OUTPUT)["figures"]

    assert figures["TTFT p50, ms"] == {"median": 500, "least": 250, "most": 750}
    assert figures["TPOT p50, ms"] == {"median": 406.25, "least": 312.5, "most": 500}
    assert figures["output tokens/s"] == {"median": 4.5, "least": 3, "most": 6}


def test_an_answer_that_is_not_whole_has_failed() -> None:
    """
    Engines end requests that do not fit; then nothing counts.
    """
    requests = [answered(1.0, 1.5, 2.0, 2.5), answered(1.0, 1.5)]

    report = in_process.report([requests], NUM_OUTPUT)

    assert report["runs"] == [{"num_failed": 1, "errors": ["FINISHED after 1 tokens"]}]
    assert report["figures"] == {}
