"""Random operands in bfloat16, and their product rounded once."""

import torch
from torch import Tensor
from torch.nn.functional import linear
from triton_device import DEVICE


def normal(*shape: int) -> Tensor:
    numbers = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=numbers).to(DEVICE, torch.bfloat16)


def exact(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """On the CPU: CUDA's library has no deterministic mode by itself."""
    addend = None if bias is None else bias.double().cpu()
    return linear(x.double().cpu(), weight.double().cpu(), addend)


def assert_rounded(found: Tensor, expected: Tensor) -> None:
    """Rounded once; the interpreter cuts bfloat16 where a GPU rounds it."""
    assert found.dtype == torch.bfloat16
    assert found.is_contiguous()
    torch.testing.assert_close(found.double().cpu(), expected, rtol=2**-7, atol=1e-3)
