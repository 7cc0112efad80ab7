"""Compile this package's kernels ahead of their first use.

    python -m engine.compile [--behind]

`--behind` others, who compute meanwhile: it takes the cores that they leave. One process
at a time does: others wait for it, and find that there is nothing to do.
"""

import fcntl
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine.compiled import MACHINE_CODE, are_compiled, marker
from engine.compression import GROUP, compress, decompress
from engine.kernel import LayerBlocks, Rule, StepIndex, paged_attention
from engine.program import NOWHERE, program_of, run, with_claims

LAST_IN_LINE = 19


def main(options: Sequence[str]) -> None:
    """Exit code 1 and one line where machine code cannot be kept."""
    if "--behind" in options:
        _step_back()
    try:
        with _alone():
            if not are_compiled():
                compile_kernels()
                marker().touch()
    except OSError as error:
        print(f"machine code cannot be kept: {error}", file=sys.stderr)
        sys.exit(1)


def compile_kernels() -> None:
    """One call of each kernel, with arguments of the kinds that the engine has."""
    rows = compress(torch.zeros((1, GROUP), dtype=torch.bfloat16))
    assert rows is not None, "zeros are smaller"
    decompress(rows, GROUP)
    for stored in (np.float32, np.uint16):
        _attend(stored)
    run(with_claims(program_of(1), 1, 1), NOWHERE)


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


def _attend(stored: Any) -> None:
    """One token with two heads of two dims, in a block of two tokens."""
    new = np.zeros((1, 2, 2), stored)
    one, table = np.zeros(1, np.int64), np.zeros((1, 1), np.int64)
    tiles = np.array([[0, 0, 1, 0]], np.int64)
    layer = LayerBlocks(np.zeros((1, 16), stored), 2, 0, 8)
    index = StepIndex(one, table, tiles)
    paged_attention((new, new, new), new.copy(), layer, index, Rule(1.0, 0, 0.0))


if __name__ == "__main__":
    main(sys.argv[1:])
