"""Linear layers of bfloat16 as float32, where torch has no quick way to compute them.

On a processor without products of bfloat16 (AVX2 only, for instance) torch takes weights
one by one, four times as slowly as float32.
"""

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

# Fewer rows take the time of reading the weights, and those of bfloat16 are half as long.
_MANY_ROWS = 8
_WEIGHTS_AT_ONCE = 2**19  # widened, so that they are still in the cache when multiplied


def quick_linear() -> AbstractContextManager[object]:
    """While inside, this thread's linear layers of bfloat16 take no longer than float32's."""
    return nullcontext() if _is_quick() else _Widening()


@cache
def _is_quick() -> bool:
    has_library = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return has_library and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class _Widening(TorchFunctionMode):
    """Hears of every call of torch, and answers those of `linear`."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        answer = widened_linear if function is linear else function
        return answer(*args, **(kwargs or {}))


def widened_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`; many rows of bfloat16 on the CPU by float32 products."""
    inputs = x.shape[-1]
    is_ours = x.device.type == "cpu" and x.dtype == weight.dtype == torch.bfloat16
    if not is_ours or x.numel() < _MANY_ROWS * inputs:
        return linear(x, weight, bias)
    wide, step = x.float(), max(1, _WEIGHTS_AT_ONCE // inputs)
    y = x.new_empty((*x.shape[:-1], len(weight)))
    for first in range(0, len(weight), step):
        some = slice(first, first + step)
        offsets = None if bias is None else bias[some].float()
        y[..., some] = linear(wide, weight[some].float(), offsets)
    return y
