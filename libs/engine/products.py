"""Products with a weight, by torch or by a kernel for few rows, whichever is faster here.

Which that is depends on the GPU and the shape: it is measured as a model is bound, among
kernels that answer as torch does. What the products mean is not known here.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from itertools import cycle, islice

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from engine.stand_ins import are_equal
from engine.triton_linear import (
    TILINGS,
    Activation,
    Tiling,
    add_few_rows,
    fastest,
    few_gated_rows,
    few_rows,
    padded,
)
from engine.triton_rows import gate

_TIMED_BYTES = 8 * 10**9  # about two milliseconds
_MAX_TIMED_CALLS = 64


class Product(nn.Module):
    """x @ weight.T + bias: torch's or, of few rows, by the tiling that was chosen."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias
        # Of each number of rows in ROWS, once chosen.
        self.tilings: dict[int, Tiling | None] = {}

    def forward(self, *operands: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs]."""
        x = operands[0]
        num_rows = x.numel() // x.shape[-1]
        return self.by(self.tilings.get(padded(num_rows)), *operands)

    def by(self, tiling: Tiling | None, *operands: Tensor) -> Tensor:
        """The same, by torch for None."""
        (x,) = operands
        if tiling is None:
            return linear(x, self.weight, self.bias)
        return few_rows(x, self.weight, tiling, self.bias)

    def operands(self, num_rows: int) -> tuple[Tensor, ...]:
        """Random ones, always the same."""
        numbers = torch.Generator().manual_seed(0)
        x = torch.randn((num_rows, self.weight.shape[1]), generator=numbers)
        return (x.to(self.weight),)

    def kind(self) -> Hashable:
        """Products of one kind take the same time."""
        return type(self), self.weight.shape, self.bias is None


class Sum(Product):
    """Adds a product to rows, in place."""

    def by(self, tiling: Tiling | None, *operands: Tensor) -> Tensor:
        """x [num_rows, inputs] and what is added to, [num_rows, outputs]."""
        x, stream = operands
        if tiling is None:
            return stream.addmm_(x, self.weight.t())
        return add_few_rows(stream, x, self.weight, tiling)

    def operands(self, num_rows: int) -> tuple[Tensor, ...]:
        (x,) = super().operands(num_rows)
        return x, x.new_zeros((num_rows, len(self.weight)))


class Gated(Product):
    """activation(gates) * ups of gates and ups that are one product."""

    def __init__(self, weight: Tensor, activation: Activation) -> None:
        super().__init__(weight)
        self._activation: Activation = activation

    def by(self, tiling: Tiling | None, *operands: Tensor) -> Tensor:
        (x,) = operands
        if tiling is None:
            gates, ups = linear(x, self.weight).chunk(2, dim=-1)
            return gate(gates, ups, self._activation)
        return few_gated_rows(x, self.weight, tiling, self._activation)


def choose_tilings(model: nn.Module, few_rows: Sequence[int]) -> None:
    """Measure what computes each kind of product fastest, for these numbers of rows.

    One of ROWS stands for all numbers up to it. The device must be quiet.
    """
    kinds = defaultdict(list)
    for module in model.modules():
        if isinstance(module, Product):
            kinds[module.kind()].append(module)
    for products in kinds.values():
        chosen = {num_rows: _chosen(products, num_rows) for num_rows in few_rows}
        for product in products:
            product.tilings = chosen


def _chosen(products: Sequence[Product], num_rows: int) -> Tiling | None:
    """What is fastest, of tilings that answer as torch does."""
    first, operands = products[0], products[0].operands(num_rows)
    equal = list(_equal(first, num_rows))
    num_calls = max(1, _TIMED_BYTES // first.weight.nbytes)
    turns = islice(cycle(products), min(num_calls, _MAX_TIMED_CALLS))
    acts = [lambda tiling, each=each: each.by(tiling, *operands) for each in turns]
    return fastest(acts, equal)


def _equal(product: Product, num_rows: int) -> Iterator[Tiling]:
    expected = product.by(None, *product.operands(num_rows))
    # Without a GPU nothing is measured, and one of them will do.
    for tiling in TILINGS if product.weight.is_cuda else TILINGS[:1]:
        if isinstance(product, Gated) and tiling.outputs < 2:
            continue
        if are_equal(product.by(tiling, *product.operands(num_rows)), expected):
            yield tiling
