"""How full the KV blocks are before anybody has to give some back.

Drives the store's own code step by step, as one prefill and one decode worker would, with
more requests than fit: prompts and outputs of log-normal length, like those of chats.
Prints the use of the blocks over time, and saves the plot.

    make bench-memory ARGS="--blocks 4096"
"""

import argparse
import json
import random
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
from matplotlib import pyplot
from rich.console import Console
from rich.table import Table

from kv.operations import Held, Progress, Record
from kvstore.store import Store
from protocol.memory import KVGeometry, LayerGeometry
from protocol.messages import PrefillJob, RequestId
from protocol.sampling import SamplingParams

BLOCK_SIZE = 16
LAYER = LayerGeometry(num_kv_heads=1, k_head_dim=1, v_head_dim=1)
GEOMETRY = KVGeometry(layers=(LAYER,), dtype="float32", block_size=BLOCK_SIZE)
PREFILL, DECODE = "prefill", "decode"
PROMPTS_PER_STEP = 4
ROWS = 20  # of the printed table

matplotlib.use("Agg")


@dataclass(frozen=True, slots=True)
class Sample:
    """The pool after one step, as shares of all blocks or slots."""

    referenced: float
    live: float  # slots that hold a token of a running sequence
    num_preempted: int


@dataclass(slots=True)
class Load:
    """Workers that only count tokens, over the real store."""

    store: Store
    arrivals: deque[PrefillJob]
    running: dict[RequestId, Record] = field(default_factory=dict)
    lengths: dict[RequestId, int] = field(default_factory=dict)

    def step(self) -> None:
        for _ in range(PROMPTS_PER_STEP):
            if self.arrivals:
                self._prefill(self.arrivals.popleft())
        self._follow_announcements()
        self._decode()

    def _prefill(self, job: PrefillJob) -> None:
        answer = self.store.admit(job, PREFILL)
        if isinstance(answer, Record):
            num_tokens = len(answer.token_ids)
            self.store.advance([_progress(answer, num_tokens)], PREFILL)
            self.store.park([_held(answer)], PREFILL)

    def _follow_announcements(self) -> None:
        for _ in range(len(self.store.announcements)):
            record = self.store.parked(self.store.announcements.popleft())
            if record is None:
                continue
            job = record.next_job()
            if isinstance(job, PrefillJob):
                self._prefill(job)
                continue
            answer = self.store.adopt(job.request_id, job.generation, DECODE)
            if isinstance(answer, Record):
                self.running[job.request_id] = answer
                self.lengths[job.request_id] = len(answer.token_ids)

    def _decode(self) -> None:
        steps = [
            _progress(record, self.lengths[request_id])
            for request_id, record in self.running.items()
        ]
        advanced = self.store.advance(steps, DECODE)
        for request_id in advanced.gone:
            del self.running[request_id]
        ended = []
        for request_id, record in list(self.running.items()):
            self.lengths[request_id] += 1
            num_output = self.lengths[request_id] - record.num_prompt_tokens
            if num_output >= record.sampling.max_tokens:
                ended.append(_held(record))
                del self.running[request_id]
        self.store.release(ended, DECODE)

    def sample(self) -> Sample:
        blocks = self.store.blocks
        slots = blocks.num_blocks * BLOCK_SIZE
        return Sample(
            blocks.num_referenced / blocks.num_blocks,
            self.store.num_live_tokens / slots,
            self.store.counts.preemptions,
        )


def _progress(record: Record, num_computed_tokens: int) -> Progress:
    return Progress(
        request_id=record.request_id,
        generation=record.generation,
        num_computed_tokens=num_computed_tokens,
        token_ids=(7,),
    )


def _held(record: Record) -> Held:
    return Held(request_id=record.request_id, generation=record.generation)


def requests(count: int, seed: int, most: int) -> deque[PrefillJob]:
    draw = random.Random(seed)

    def length() -> int:
        return max(1, min(most // 2, round(draw.lognormvariate(5.0, 1.0))))

    jobs = deque[PrefillJob]()
    for number in range(count):
        tokens = tuple(draw.randrange(50_000) for _ in range(length()))
        jobs.append(
            PrefillJob(
                request_id=RequestId(f"r{number}"),
                token_ids=tokens,
                num_prompt_tokens=len(tokens),
                sampling=SamplingParams(max_tokens=length()),
                reply_to="nobody",
                deadline=time.time() + 3600,
            )
        )
    return jobs


def measure(num_blocks: int, num_requests: int, seed: int) -> list[Sample]:
    store = Store(GEOMETRY, num_blocks, max_waiting=num_requests)
    load = Load(store, requests(num_requests, seed, num_blocks * BLOCK_SIZE))
    samples = []
    while load.arrivals or load.running or store.num_waiting or store.num_parked:
        load.step()
        samples.append(load.sample())
    store.check()
    assert store.blocks.num_referenced == 0, "a block was leaked"
    return samples


def full_before_preemption(samples: list[Sample]) -> float:
    """The share of blocks in use at the step before the first preemption."""
    before = [sample.referenced for sample in samples if sample.num_preempted == 0]
    return max(before[-1:] or [0.0])


def draw(samples: list[Sample], path: Path) -> None:
    figure, axes = pyplot.subplots(figsize=(8, 4))
    axes.plot([sample.referenced for sample in samples], label="blocks in use")
    axes.plot([sample.live for sample in samples], label="slots with live tokens")
    first = next((i for i, s in enumerate(samples) if s.num_preempted), None)
    if first is not None:
        axes.axvline(first, color="red", linewidth=0.8, label="first preemption")
    axes.set(xlabel="step", ylabel="share", ylim=(0, 1.02))
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100, bbox_inches="tight")


def table_of(samples: list[Sample]) -> Table:
    table = Table("step", "blocks in use", "live slots", "preempted", title="KV memory")
    for number in range(0, len(samples), max(1, len(samples) // ROWS)):
        sample = samples[number]
        table.add_row(
            str(number),
            f"{sample.referenced:.1%}",
            f"{sample.live:.1%}",
            str(sample.num_preempted),
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description="How full the KV blocks get.")
    parser.add_argument("--blocks", type=int, default=2048)
    parser.add_argument("--requests", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=Path, default=Path("bench/results/memory.png"))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    samples = measure(options.blocks, options.requests, options.seed)
    draw(samples, options.plot)
    figures = {
        "blocks_in_use_before_first_preemption": full_before_preemption(samples),
        "num_preempted": samples[-1].num_preempted,
        "num_steps": len(samples),
    }
    if options.json:
        print(json.dumps(figures, indent=2))
        return
    console = Console()
    console.print(table_of(samples))
    for name, value in figures.items():
        console.print(f"{name.replace('_', ' ')}: {value:.4g}")
    console.print(f"plot: {options.plot}")


if __name__ == "__main__":
    main()
