"""Other processes that take the two cores of a machine."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

HOLDER = """
import os, sys
os.sched_getaffinity = lambda _: {0, 1}
from engine.cores import Cores
with Cores(int(sys.argv[1])).taken(int(sys.argv[2])) as are_ours:
    print("holds" if are_ours else "waited in vain", flush=True)
    sys.stdin.readline()
print("let go", flush=True)
sys.stdin.readline()
"""

WATCHER = """
import os, sys, time
os.sched_getaffinity = lambda _: {0, 1}
from engine.cores import Cores
cores = Cores(int(sys.argv[1]))
with cores.shared(int(sys.argv[2])):
    while True:
        print(cores.held.num_cores, flush=True)
        while not cores.are_called:
            time.sleep(0.001)
        cores.pause()
"""
GOER = """
import os, sys, time
os.sched_getaffinity = lambda _: {0, 1}
from engine.cores import Cores
cores = Cores(int(sys.argv[1]))
while True:
    with cores.taken(int(sys.argv[2]), goes_first=True):
        time.sleep(0.001)
    time.sleep(0.001)
"""


@contextmanager
def holder(fd: int, count: int) -> Iterator[subprocess.Popen[str]]:
    """Another process that computes on so many cores until it is told to stop."""
    with program(HOLDER, fd, count) as process:
        assert said(process) == "holds"
        yield process


@contextmanager
def watcher(fd: int, count: int) -> Iterator[subprocess.Popen[str]]:
    """Another one, in a step that watches and never ends; it says on how many cores."""
    with program(WATCHER, fd, count) as process:
        yield process


@contextmanager
def goer(fd: int, count: int) -> Iterator[None]:
    """Another one, whose short steps go first, one after the other."""
    with program(GOER, fd, count):
        yield


@contextmanager
def program(text: str, fd: int, count: int) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", text, str(fd), str(count)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, pass_fds=[fd], text=True, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def said(process: subprocess.Popen[str]) -> str:
    """The next line of it."""
    assert process.stdout
    return process.stdout.readline().strip()


def stop(process: subprocess.Popen[str]) -> None:
    """It lets go, and goes on to live."""
    assert process.stdin
    process.stdin.write("\n")
    process.stdin.flush()
    assert said(process) == "let go"
