"""Compile this package's kernels ahead of their first use.

    python -m engine.compile [--behind]

On all cores; `--behind` others, who compute meanwhile, on one, and only while they leave
it. One of these at a time: others wait for it, and find that there is nothing to do.
"""

import fcntl
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from engine.compiled import MACHINE_CODE, are_compiled, marker
from engine.compression import GROUP, compress, decompress
from engine.operations import FAMILIES, Kind, machine_code
from engine.place import NOWHERE
from engine.program import program_of, run, with_claims

LAST_IN_LINE = 19


def main(options: Sequence[str]) -> None:
    """Exit code 1 and one line where machine code cannot be kept."""
    num_processes = len(os.sched_getaffinity(0))
    if "--behind" in options:
        _step_back()
        num_processes = 1
    try:
        with _alone():
            if not are_compiled():
                compile_kernels(num_processes)
                marker().touch()
    except OSError as error:
        print(f"machine code cannot be kept: {error}", file=sys.stderr)
        sys.exit(1)


def compile_kernels(num_processes: int) -> None:
    """All of them, for arguments of the kinds that the engine has."""
    if num_processes == 1:
        for kernel in range(len(_KERNELS)):
            _compile(kernel)
        return
    with ProcessPoolExecutor(num_processes, get_context("fork")) as pool:
        list(pool.map(_compile, range(len(_KERNELS))))


def _compile(kernel: int) -> None:
    _KERNELS[kernel]()


def _compile_compression() -> None:
    rows = compress(torch.zeros((1, GROUP), dtype=torch.bfloat16))
    assert rows is not None, "zeros are smaller"
    decompress(rows, GROUP)


def _compile_run() -> None:
    nothing = program_of(1, families=np.zeros(len(Kind), np.int64))
    run(with_claims(nothing, 1, 1), NOWHERE)


# The longest come first.
_KERNELS: list[Callable[[], object]] = [
    *(partial(machine_code, family) for family in reversed(FAMILIES)),
    _compile_run,
    _compile_compression,
]


def _step_back() -> None:
    os.nice(LAST_IN_LINE)
    if os.getsid(0) == os.getpid():
        # Where each session has its part of the cores, the above counts within it only.
        with suppress(OSError):
            Path("/proc/self/autogroup").write_text(str(LAST_IN_LINE))


@contextmanager
def _alone() -> Iterator[None]:
    """Nobody else compiles into this folder while the block lasts."""
    MACHINE_CODE.mkdir(parents=True, exist_ok=True)
    with (MACHINE_CODE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    main(sys.argv[1:])
