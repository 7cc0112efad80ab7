"""The division of a real GPU's SMs: where kernels run, in one process and in two."""

import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from statistics import median

import pytest
import torch

from device.mps import NoDaemon, own_daemon
from engine.partition import Lanes

smid = pytest.importorskip("engine.smid", exc_type=ImportError)
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

SHARES = (25, 50, 75, 90)
EACH_INDEX = pytest.mark.parametrize("index", range(len(SHARES)))
HALF = 1  # index of the even split
LONG = 16_000_000  # steps of `occupy`: some tenths of a second

WORKER = """
import sys, time
import torch
from engine.partition import Lanes
from engine.smid import occupy, places, sm_ids

def multiplied(stream, at):
    a = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
    torch.cuda.synchronize()
    while time.time() < at:
        pass
    count = 0
    with torch.cuda.stream(stream):
        while time.time() < at + 0.5:
            for _ in range(8):
                a @ a
            stream.synchronize()
            count += 8
    return count / (time.time() - at)

lanes = Lanes.open(sys.argv[1], [int(each) for each in sys.argv[2:]])
assert lanes.mode == "green", lanes.reason
for line in sys.stdin:
    what, index, *rest = line.split()
    stream = lanes.stream(int(index))
    if what == "look":
        print(*sorted(sm_ids(stream)), flush=True)
        continue
    if what == "multiply":
        print(multiplied(stream, float(rest[0])), flush=True)
        continue
    with torch.cuda.stream(stream):
        seen = places(128)
        stream.synchronize()
        started = time.monotonic()
        occupy(seen, *map(int, rest))
        stream.synchronize()
        print(started, time.monotonic(), flush=True)
"""


class Worker:
    """A process with the lanes of one side; answers a line with numbers."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process

    def tell(self, *words: object) -> None:
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()

    def hear(self) -> list[float]:
        line = self.process.stdout.readline()
        assert line, "the worker has ended; its stderr says why"
        return [float(word) for word in line.split()]


@contextmanager
def workers(environment: Mapping[str, str] | None = None) -> Iterator[list[Worker]]:
    """Prefill's and decode's; they end when their input does."""
    with ExitStack() as leaving:
        yield [
            Worker(
                leaving.enter_context(
                    subprocess.Popen(
                        [sys.executable, "-c", WORKER, side, *map(str, SHARES)],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        text=True,
                        env=environment,
                    )
                )
            )
            for side in ("prefill", "decode")
        ]


def looked(both: list[Worker], index: int) -> list[set[int]]:
    """The SMs that each worker's kernels run on."""
    for each in both:
        each.tell("look", index)
    return [{int(number) for number in each.hear()} for each in both]


def seconds_of(some: list[Worker]) -> float:
    """From the first one's start to the last one's end, all told at once."""
    for each in some:
        each.tell("compute", HALF, LONG)
    times = [each.hear() for each in some]
    return max(ended for _, ended in times) - min(started for started, _ in times)


def products(some: list[Worker]) -> list[float]:
    """How many matrix products a second each makes, all at the same time."""
    at = time.time() + 0.05
    for each in some:
        each.tell("multiply", HALF, at)
    return [each.hear()[0] for each in some]


def num_sms() -> int:
    return torch.cuda.get_device_properties().multi_processor_count


@pytest.fixture(scope="module")
def prefill() -> Iterator[Lanes]:
    with closing(Lanes.open("prefill", SHARES)) as lanes:
        assert lanes.mode == "green", lanes.reason
        yield lanes


@pytest.fixture(scope="module")
def decode() -> Iterator[Lanes]:
    with closing(Lanes.open("decode", SHARES)) as lanes:
        assert lanes.mode == "green", lanes.reason
        yield lanes


@pytest.fixture(scope="module")
def two_processes() -> Iterator[list[Worker]]:
    with workers() as both:
        yield both


@pytest.fixture(scope="module")
def two_clients() -> Iterator[list[Worker]]:
    """Two processes that are clients of an MPS daemon of our own."""
    with ExitStack() as leaving:
        try:
            environment = leaving.enter_context(own_daemon())
        except NoDaemon as error:
            pytest.skip(str(error))
        yield leaving.enter_context(workers(environment))


@EACH_INDEX
def test_the_sides_of_a_split_share_no_sm(
    prefill: Lanes, decode: Lanes, index: int
) -> None:
    """
    Each side runs on as many SMs as the split says, on none of the other's, and together
    they have all of the device.
    """
    mine = smid.sm_ids(prefill.stream(index))
    yours = smid.sm_ids(decode.stream(index))

    assert prefill.split(index) == decode.split(index) == (len(mine), len(yours))
    assert not mine & yours
    assert len(mine | yours) == num_sms()


def test_the_whole_stream_has_every_sm(prefill: Lanes) -> None:
    """
    Without an index kernels run on the whole device, green contexts or not.
    """
    seen = smid.sm_ids(prefill.stream(None))

    assert len(seen) == num_sms()


@EACH_INDEX
def test_two_processes_make_the_same_split(
    two_processes: list[Worker], prefill: Lanes, index: int
) -> None:
    """
    Nobody promises it: the same calls in another process name the same SMs.
    """
    mine, yours = looked(two_processes, index)

    assert not mine & yours
    assert len(mine | yours) == num_sms()
    assert mine == smid.sm_ids(prefill.stream(index))


def test_a_switch_takes_less_than_a_millisecond(prefill: Lanes) -> None:
    """
    From a step on one lane to a step on another, in order: host time, at the median.
    """
    seen = smid.places(num_sms())
    smid.occupy(seen, smid.NUM_STEPS)
    torch.cuda.synchronize()
    seconds = []

    before = prefill.whole
    for index in [*range(len(SHARES)), None] * 20:
        started = time.perf_counter()
        stream = prefill.stream(index)
        stream.wait_stream(before)
        seconds.append(time.perf_counter() - started)
        with torch.cuda.stream(stream):
            smid.occupy(seen, smid.NUM_STEPS)
        before = stream
    torch.cuda.synchronize()

    assert median(seconds) < 1e-3
    assert seen[:, 0].min() >= 0


@pytest.mark.parametrize("replayed_on", ["its lane", "the whole device"])
def test_a_captured_graph_stays_on_its_lane(decode: Lanes, replayed_on: str) -> None:
    """
    A graph's kernels run on the SMs of the lane that captured them, wherever it is
    launched.
    """
    lane = decode.stream(HALF)
    allowed = smid.sm_ids(lane)
    seen = smid.places(num_sms() * smid.PROGRAMS_PER_SM)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=lane):
        smid.occupy(seen, smid.NUM_STEPS)

    seen.fill_(-1)
    torch.cuda.synchronize()
    stream = lane if replayed_on == "its lane" else decode.whole
    with torch.cuda.stream(stream):
        graph.replay()
    stream.synchronize()  # the device's own does not wait for a green context

    assert set(seen[:, 0].tolist()) == allowed


def test_clients_of_mps_do_not_share_sms(two_clients: list[Worker]) -> None:
    """
    Under MPS each process numbers its SMs from 0, so their numbers tell nothing: that
    the sides of a split are apart shows in how little they slow each other down. On the
    same SMs each would be left with half its rate at most.
    """
    products(two_clients)  # the clocks up

    alone = [products([each])[0] for each in two_clients]
    together = products(two_clients)

    for rate, undisturbed in zip(together, alone, strict=True):
        assert rate > 0.6 * undisturbed, (alone, together)


def test_clients_of_mps_compute_at_the_same_time(two_clients: list[Worker]) -> None:
    """
    Under MPS the two sides together take well under the sum of what each takes alone.
    """
    seconds_of(two_clients)  # compiled, loaded, and the clocks up

    alone = [seconds_of([each]) for each in two_clients]
    together = seconds_of(two_clients)

    assert together < 0.75 * sum(alone), (alone, together)
