"""GPU memory lent between real processes, by both kinds of handle."""

import os
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from contextlib import closing

import pytest
import torch

from kv.cuda import map_on_device, segment_maker
from kv.errors import NoRoom
from kv.frames import framed, send_descriptors
from kv.segments import Segment
from protocol.wire import encode

BORROWER = textwrap.dedent("""
    import socket, sys, time
    import torch
    from kv.cuda import map_on_device
    from kv.frames import receive_descriptors, receive_frame
    from protocol.memory import SegmentHandle
    from protocol.wire import Decoder
    line = socket.socket(fileno=int(sys.argv[1]))
    torch.zeros(1, device="cuda")
    handle = Decoder(SegmentHandle)(receive_frame(line))
    started = time.perf_counter()
    fd = None if handle.ipc else receive_descriptors(line, 1)[0]
    mapping = map_on_device(handle, fd, writable=sys.argv[2] == "writable")
    print("attached in ms:", 1000 * (time.perf_counter() - started), file=sys.stderr)
    memory = torch.as_tensor(mapping, device="cuda")
    memory[7] += 1
    torch.cuda.synchronize()
    print(memory[7].item(), len(memory))
""")
# Adds one to a number, again and again, far ahead of the GPU.
WRITER = textwrap.dedent("""
    import socket, sys
    import torch
    from kv.cuda import map_on_device
    from kv.frames import receive_descriptors, receive_frame
    from protocol.memory import SegmentHandle
    from protocol.wire import Decoder
    line = socket.socket(fileno=int(sys.argv[1]))
    handle = Decoder(SegmentHandle)(receive_frame(line))
    fd = receive_descriptors(line, 1)[0]
    mapping = map_on_device(handle, fd, writable=True)
    number = torch.as_tensor(mapping, device="cuda")[:8].view(torch.int64)
    number.zero_()
    torch.cuda.synchronize()
    print("writing", flush=True)
    while True:
        number.add_(1)
""")
SIZE = 3 << 30
WATCHED_SECONDS = 0.5


def borrow(segment: Segment, access: str) -> "subprocess.CompletedProcess[str]":
    """A process that maps the segment and adds one to a byte of it."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.send(framed(encode(segment.handle)))
        if segment.descriptors:
            send_descriptors(ours, segment.descriptors)
        return subprocess.run(
            [sys.executable, "-c", BORROWER, str(theirs.fileno()), access],
            pass_fds=[theirs.fileno()],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@pytest.mark.parametrize("sharing", ["vmm", "ipc"])
def test_what_one_process_writes_the_next_one_reads(sharing: str) -> None:
    """
    Two processes in turn map a segment of this one, and each finds the other's byte.
    """
    with closing(segment_maker(sharing)("blocks", SIZE)) as segment:
        first = borrow(segment, "writable")
        second = borrow(segment, "writable")

    print(second.stderr)
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    one, other = (int(each.stdout.split()[0]) for each in (first, second))
    assert other == (one + 1) % 256
    assert int(second.stdout.split()[1]) >= SIZE


def test_nothing_is_written_after_the_end_of_a_process() -> None:
    """
    Of a process that is killed with work on its way nothing comes any more once it has
    ended: what the store's fence counts on, where no MPS stands between.
    """
    ours, theirs = socket.socketpair()
    with closing(segment_maker("vmm")("blocks", 1)) as segment, ours, theirs:
        fd = os.dup(segment.descriptors[0])
        with closing(map_on_device(segment.handle, fd, writable=False)) as mapping:
            number = torch.as_tensor(mapping, device="cuda")[:8].view(torch.int64)
            ours.send(framed(encode(segment.handle)))
            send_descriptors(ours, segment.descriptors)
            with subprocess.Popen(
                [sys.executable, "-c", WRITER, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdout=subprocess.PIPE,
                text=True,
            ) as writer:
                assert writer.stdout
                line = writer.stdout.readline()
                wait_for(lambda: int(number) > 1000)
                writer.kill()
            seen = numbers_seen(number)

    assert line == "writing\n"
    assert len(seen) == 1


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "nothing is written"


def numbers_seen(number: torch.Tensor) -> set[int]:
    """All values that it has within a while."""
    deadline, seen = time.monotonic() + WATCHED_SECONDS, set[int]()
    while time.monotonic() < deadline:
        seen.add(int(number))
    return seen


def test_read_only_memory_cannot_be_written() -> None:
    """
    A worker that tries to write into the weights fails, and the weights stay.
    """
    with closing(segment_maker("vmm")("weights", SIZE)) as segment:
        before = borrow(segment, "writable")
        refused = borrow(segment, "read-only")
        after = borrow(segment, "writable")

    assert refused.returncode != 0
    assert int(after.stdout.split()[0]) == int(before.stdout.split()[0]) + 1


def test_too_large_a_segment_is_refused_in_words() -> None:
    """
    More than the GPU has ends with the size and the driver's reason.
    """
    with pytest.raises(NoRoom, match="OUT_OF_MEMORY"):
        segment_maker("vmm")("blocks", 1 << 40)
