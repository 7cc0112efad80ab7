"""Whether products of many rows are ours, and rows packed for them."""

from functools import cache

import torch
from torch import Tensor

from engine.emitter import has, multiplies_pairs
from engine.operations import Kind
from engine.panels import PANEL, num_panels
from engine.recorder import Recorder
from engine.widened import WIDENS


@cache
def is_ours() -> bool:
    """Whether our products of many rows are no slower than the library's.

    A processor with a unit for tiles (AMX) multiplies several times as fast, and there the
    library uses it. It knows AVX-512 without pairs as well; with less than that it takes
    bfloat16 one by one, and is ten times as slow.
    """
    if multiplies_pairs():
        return not has("amx-bf16")
    return has("avx2") and has("fma") and not has("avx512f")


def packs(inputs: int) -> bool:
    """Whether rows of so many inputs are packed: pairs have no rest."""
    return is_ours() and inputs % 2 == 0


def packed(x: Tensor, recorder: Recorder) -> Tensor:
    """x [..., inputs], contiguous, in the panels that `engine.panels` multiplies.

    The answer has the shape of x; what lies in it does not look like it, is float32
    where that is multiplied, and has room for whole panels.
    """
    inputs = x.shape[-1]
    rows = x.numel() // inputs
    dtype = torch.float32 if WIDENS else x.dtype
    room = x.new_empty(num_panels(rows) * PANEL * inputs, dtype=dtype)
    panels = room.as_strided(x.shape, x.stride())
    recorder.do(Kind.PACK, rows, (x, panels), (inputs,))
    return panels
