"""What computes each of a model's products, measured on the stream that will compute them.

That depends on the GPU, on how many of its multiprocessors the stream has, and on shapes:
a library that takes all of the GPU for granted is slow on a part of it. Only kernels that
answer as torch does are chosen from.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from itertools import cycle, islice

import torch
from torch import Tensor, nn

from engine import triton_skinny
from engine.fastest import fastest
from engine.products import ROWS, Kernel, Product
from engine.stand_ins import are_equal
from engine.triton_skinny import Tile, Workspace

_TIMED_BYTES = 8 * 10**8  # a fifth of a millisecond, and many times the L2 cache
_MAX_TIMED_CALLS = 64


def products_of(model: nn.Module) -> list[Product]:
    return [each for each in model.modules() if isinstance(each, Product)]


def workspace(
    products: Sequence[Product], sizes: Collection[int], device: torch.device
) -> Workspace:
    """For any kernel that may be chosen for any of `sizes` multiprocessors."""
    one_of = {each.kind(): each for each in products}
    users = [
        (kernel, product.shape(num_rows))
        for product in one_of.values()
        for num_rows in triton_skinny.ROWS
        for num_sms in sizes
        for kernel in product.candidates(num_rows, num_sms)
        if isinstance(kernel, Tile)
    ]
    return Workspace.of(users, device)


def choose_kernels(products: Sequence[Product], space: Workspace, num_sms: int) -> None:
    """Let each kind of product take what computes it fastest, for few rows.

    Measures on the current stream, which has so many multiprocessors; they must be quiet.
    One of ROWS stands for all numbers up to it. Graphs keep what they were captured with,
    and `space`.
    """
    kinds = defaultdict(list)
    for product in products:
        product.space = space
        kinds[product.kind()].append(product)
    for alike in kinds.values():
        chosen = {num_rows: _chosen(alike, num_rows, num_sms) for num_rows in ROWS}
        for product in alike:
            product.kernels = chosen


def calls(products: Sequence[Product]) -> Iterator[Product]:
    """Products to be timed one after the other, their weights in no cache."""
    num_calls = max(1, _TIMED_BYTES // products[0].weight.nbytes)
    return islice(cycle(products), min(num_calls, _MAX_TIMED_CALLS))


def _chosen(products: Sequence[Product], num_rows: int, num_sms: int) -> Kernel | None:
    """What is fastest; torch for None."""
    first, operands = products[0], products[0].operands(num_rows)
    candidates = first.candidates(num_rows, num_sms)
    # Without a GPU nothing is measured, and one of them will do.
    tried = candidates if first.weight.is_cuda else candidates[:1]
    equal = list(_equal(first, tried, operands))
    acts = [
        lambda kernel, each=each: each.by(kernel, *operands) for each in calls(products)
    ]
    return fastest(acts, equal)


def _equal(
    product: Product, kernels: Sequence[Kernel], operands: Sequence[Tensor]
) -> Iterator[Kernel]:
    """Those that answer as torch does."""
    expected = product.by(None, *(each.clone() for each in operands))
    for kernel in kernels:
        found = product.by(kernel, *(each.clone() for each in operands))
        if are_equal(found, expected):
            yield kernel
