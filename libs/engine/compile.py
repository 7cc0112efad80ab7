"""Compile this package's kernels ahead of the first start: python -m engine.compile"""

from typing import Any

import numpy as np

from engine.kernel import LayerBlocks, Rule, StepIndex, paged_attention
from engine.program import NOWHERE, program_of, run, with_claims


def compile_kernels() -> None:
    """One call of each kernel, with arguments of the kinds that the engine has."""
    for stored in (np.float32, np.uint16):
        _attend(stored)
    run(with_claims(program_of(1), 1, 1), NOWHERE, 1)


def _attend(stored: Any) -> None:
    """One token with two heads of two dims, in a block of two tokens."""
    new = np.zeros((1, 2, 2), stored)
    one, table = np.zeros(1, np.int64), np.zeros((1, 1), np.int64)
    tiles = np.array([[0, 0, 1, 0]], np.int64)
    layer = LayerBlocks(np.zeros((1, 16), stored), 2, 0, 8)
    index = StepIndex(one, table, tiles)
    paged_attention((new, new, new), new.copy(), layer, index, Rule(1.0, 0, 0.0))


if __name__ == "__main__":
    compile_kernels()
