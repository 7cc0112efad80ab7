"""Products with a weight, by torch or, of few rows, by the kernel that was chosen for them.

What the products mean is not known here, nor which kernel is the fastest
(`engine.kernel_choice`).
"""

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from engine import triton_linear, triton_skinny
from engine.triton_linear import (
    TILINGS,
    Tiling,
    add_few_rows,
    few_gated_rows,
    few_rows,
    padded,
)
from engine.triton_rows import Activation, gate
from engine.triton_skinny import (
    Shape,
    Tile,
    Workspace,
    add_skinny,
    skinny,
    skinny_gated,
    tiles,
)

Kernel = Tiling | Tile  # one of `triton_linear` or of `triton_skinny`, by its constants

ROWS = triton_linear.ROWS + triton_skinny.ROWS
_SM_BYTES = 228 * 2**10  # shared memory, of compute capability 9.0


class Product(nn.Module):
    """x @ weight.T + bias: torch's or, of few rows, by the kernel that was chosen."""

    num_weights = 1  # that lie side by side, of which an output needs a row each

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias
        # Of each number of rows in ROWS, once chosen.
        self.kernels: dict[int, Kernel | None] = {}
        self.space: Workspace | None = None  # of those kernels; the engine's

    def forward(self, *operands: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs]."""
        x = operands[0]
        num_rows = x.numel() // x.shape[-1]
        return self.by(self.kernels.get(padded(num_rows)), *operands)

    def by(self, kernel: Kernel | None, *operands: Tensor) -> Tensor:
        """The same, by torch for None."""
        (x,) = operands
        match kernel:
            case Tiling():
                return few_rows(x, self.weight, kernel, self.bias)
            case Tile():
                return skinny(x, self.weight, kernel, self._space, self.bias)
        return linear(x, self.weight, self.bias)

    def operands(self, num_rows: int) -> tuple[Tensor, ...]:
        """Random ones, always the same."""
        numbers = torch.Generator().manual_seed(0)
        x = torch.randn((num_rows, self.weight.shape[1]), generator=numbers)
        return (x.to(self.weight),)

    def candidates(self, num_rows: int, num_sms: int) -> Sequence[Kernel]:
        """What computes so many rows, of ROWS, on so many multiprocessors."""
        if num_rows in triton_linear.ROWS:
            return [each for each in TILINGS if each.outputs >= self.num_weights]
        return tiles(self.shape(num_rows), num_sms, _sm_bytes(self.weight))

    def shape(self, num_rows: int) -> Shape:
        outputs, inputs = self.weight.shape
        return Shape(outputs // self.num_weights, inputs, num_rows, self.num_weights)

    def kind(self) -> Hashable:
        """Products of one kind take the same time."""
        return type(self), self.weight.shape, self.bias is None

    @property
    def _space(self) -> Workspace:
        assert self.space is not None, "programs have where to leave sums"
        return self.space


class Sum(Product):
    """Adds a product to rows, in place."""

    def by(self, kernel: Kernel | None, *operands: Tensor) -> Tensor:
        """x [num_rows, inputs] and what is added to, [num_rows, outputs]."""
        x, stream = operands
        match kernel:
            case Tiling():
                return add_few_rows(stream, x, self.weight, kernel)
            case Tile():
                return add_skinny(stream, x, self.weight, kernel, self._space)
        return stream.addmm_(x, self.weight.t())

    def operands(self, num_rows: int) -> tuple[Tensor, ...]:
        (x,) = super().operands(num_rows)
        return x, x.new_zeros((num_rows, len(self.weight)))


class Gated(Product):
    """activation(gates) * ups of gates and ups that are one product."""

    num_weights = 2

    def __init__(self, weight: Tensor, activation: Activation) -> None:
        super().__init__(weight)
        self._activation: Activation = activation

    def by(self, kernel: Kernel | None, *operands: Tensor) -> Tensor:
        (x,) = operands
        match kernel:
            case Tiling():
                return few_gated_rows(x, self.weight, kernel, self._activation)
            case Tile():
                return skinny_gated(
                    x, self.weight, kernel, self._space, self._activation
                )
        gates, ups = linear(x, self.weight).chunk(2, dim=-1)
        return gate(gates, ups, self._activation)


def _sm_bytes(weight: Tensor) -> int:
    """Shared memory of each of its multiprocessors."""
    if not weight.is_cuda:
        return _SM_BYTES
    properties = torch.cuda.get_device_properties(weight.device)
    return int(properties.shared_memory_per_multiprocessor)
