"""OpenVINO GenAI's engine, asked in this process as `tandem bench` asks a server.

Prints of `tandem bench --json` what compare.py reads. It runs in the peer's environment,
so it imports nothing of ours.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from statistics import median
from typing import Any, Protocol

TOKENS = range(100, 1000)  # of prompts, as `tandem bench` draws them
CACHE_GB = 2
MAX_NUM_BATCHED_TOKENS = 2048
RUNNING = "RUNNING"
# All are numbers.
OPTIONS = "input", "output", "concurrency", "requests", "warm-up", "repeats", "seed"


class Output(Protocol):
    generated_ids: Sequence[int]


class Status(Protocol):
    name: str


class Handle(Protocol):
    """One request, as the engine names it."""

    def can_read(self) -> bool: ...
    def read(self) -> Mapping[int, Output]: ...
    def get_status(self) -> Status: ...


class Engine(Protocol):
    def add(self, prompt: Sequence[int]) -> Handle: ...
    def step(self) -> None: ...


class OpenVINO:
    """Greedy answers of one length, none of them from a cache of prefixes."""

    def __init__(self, model: str, num_output: int) -> None:
        import openvino
        import openvino_genai

        scheduling = openvino_genai.SchedulerConfig()
        scheduling.cache_size = CACHE_GB
        scheduling.enable_prefix_caching = False
        scheduling.max_num_batched_tokens = MAX_NUM_BATCHED_TOKENS
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(
            model, scheduling, "CPU"
        )
        self._config = openvino_genai.GenerationConfig()
        self._config.do_sample = False
        self._config.ignore_eos = True
        self._config.max_new_tokens = num_output
        self._tensor = openvino.Tensor
        self._num_requests = 0
        self.step = self._pipeline.step

    def add(self, prompt: Sequence[int]) -> Handle:
        self._num_requests += 1
        ids = self._tensor([prompt])
        handle: Handle = self._pipeline.add_request(
            self._num_requests, ids, self._config
        )
        return handle


def precision() -> str:
    """What the plugin picks for this processor: nothing here asks for another."""
    import openvino

    picked = openvino.Core().get_property("CPU", "INFERENCE_PRECISION_HINT")
    return str(picked.get_type_name())


@dataclass(slots=True)
class Request:
    """Times are seconds of one clock, one for each token."""

    sent: float
    handle: Handle
    times: list[float] = field(default_factory=list)

    @property
    def has_ended(self) -> bool:
        return self.handle.get_status().name != RUNNING

    @property
    def ttft(self) -> float:
        return self.times[0] - self.sent

    @property
    def tpot(self) -> float:
        return (self.times[-1] - self.times[0]) / (len(self.times) - 1)

    def read(self, now: float) -> None:
        while self.handle.can_read():
            for output in self.handle.read().values():
                self.times += [now] * len(output.generated_ids)


def closed_loop(
    engine: Engine, prompts: Iterable[Sequence[int]], num_clients: int
) -> list[Request]:
    """So many requests at once; the next one is sent as soon as one has ended."""
    sending = (
        Request(sent=time.monotonic(), handle=engine.add(each)) for each in prompts
    )
    running = list(islice(sending, num_clients))
    ended: list[Request] = []
    while running:
        engine.step()
        now = time.monotonic()
        for each in tuple(running):
            each.read(now)
            if each.has_ended:
                running.remove(each)
                ended.append(each)
                running += islice(sending, 1)
    return ended


def report(repeats: Sequence[Sequence[Request]], num_output: int) -> dict[str, Any]:
    """Of answers of at least two tokens. No figures where one was not whole: a server's
    would not count either.
    """
    runs = [_failures(requests, num_output) for requests in repeats]
    if any(run["num_failed"] for run in runs):
        return {"runs": runs, "figures": {}}
    measured = [_figures(requests) for requests in repeats]
    spreads = {
        title: _spread([figures[title] for figures in measured])
        for title in measured[0]
    }
    return {"runs": runs, "figures": spreads}


def _failures(requests: Iterable[Request], num_output: int) -> dict[str, Any]:
    errors = [
        f"{each.handle.get_status().name} after {len(each.times)} tokens"
        for each in requests
        if len(each.times) != num_output
    ]
    return {"num_failed": len(errors), "errors": sorted(set(errors))}


def _figures(requests: Sequence[Request]) -> dict[str, float]:
    """Throughput is from the first request's sending to the last answer's end."""
    began = min(each.sent for each in requests)
    ended = max(each.times[-1] for each in requests)
    num_tokens = sum(len(each.times) for each in requests)
    return {
        "TTFT p50, ms": 1000 * median(each.ttft for each in requests),
        "TPOT p50, ms": 1000 * median(each.tpot for each in requests),
        "output tokens/s": num_tokens / (ended - began),
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": median(values), "least": min(values), "most": max(values)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure OpenVINO GenAI in process.")
    parser.add_argument("model", help="a folder with a converted model")
    for option in OPTIONS:
        parser.add_argument(f"--{option}", type=int, required=True)
    options = parser.parse_args()
    rng = random.Random(options.seed)

    def ask(count: int) -> list[Request]:
        prompts = [rng.choices(TOKENS, k=options.input) for _ in range(count)]
        return closed_loop(engine, prompts, options.concurrency)

    print(f"OpenVINO computes in {precision()}", file=sys.stderr)
    engine = OpenVINO(options.model, options.output)
    ask(options.warm_up)
    repeats = [ask(options.requests) for _ in range(options.repeats)]
    print(json.dumps(report(repeats, options.output), indent=2))


if __name__ == "__main__":
    main()
