"""Products by the kernels that were chosen for them, and how those are chosen."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from triton_device import DEVICE

from engine.kernel_choice import choose_kernels, products_of, workspace
from engine.products import ROWS, Gated, Kernel, Product, Sum
from engine.stand_ins import are_equal
from engine.triton_linear import TILINGS
from engine.triton_skinny import Tile, Workspace

# The interpreter computes by numpy, which warns of exponentials that become infinite.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

NUM_SMS = 132
TILE = Tile(outputs=64, inputs=16, num_stages=2, num_warps=4, num_splits=2)


def normal(*shape: int) -> Tensor:
    numbers = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=numbers).to(DEVICE, torch.bfloat16)


def one_of_each() -> list[Product]:
    weight = normal(48, 40)
    biased = Product(weight, normal(48))
    return [biased, Product(weight), Sum(weight), Gated(weight, "gelu_tanh")]


@pytest.mark.parametrize("kernel", [TILINGS[0], TILE])
def test_a_kernel_answers_as_torch_does(kernel: Kernel) -> None:
    """
    New rows, rows that are added to and gated ones.
    """
    products = one_of_each()
    for product in products:
        product.space = Workspace(10**5, 10, torch.device(DEVICE))

    found = [each.by(kernel, *each.operands(3)) for each in products]

    for each, answer in zip(products, found, strict=True):
        assert are_equal(answer, each.by(None, *each.operands(3)))


def test_a_number_of_rows_takes_the_kernel_of_the_next() -> None:
    """
    Three rows that for four, nine that for sixteen; more than 64 are torch's.
    """
    product, taken = (
        Recorded(normal(48, 40)),
        dict(zip(ROWS, TILINGS * 2, strict=False)),
    )
    product.kernels = dict(taken)

    for num_rows in (1, 3, 5, 9, 64, 65):
        product(normal(num_rows, 40))

    expected: list[Kernel | None] = [taken[rows] for rows in (1, 4, 8, 16, 64)]
    assert product.asked == [*expected, None]


class Recorded(Product):
    """Only says by what it would compute."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__(weight)
        self.asked: list[Kernel | None] = []

    def by(self, kernel: Kernel | None, *operands: Tensor) -> Tensor:
        self.asked.append(kernel)
        return operands[0]


def test_what_is_chosen_answers_as_torch_does() -> None:
    """
    Of every kind of product, for every number of rows, from one workspace that is large
    enough for whatever is chosen on all of a GPU and on a part of it.
    """
    products = one_of_each()
    space = workspace(products, [NUM_SMS, 20], torch.device(DEVICE))

    for num_sms in (20, NUM_SMS):
        with torch.inference_mode():
            choose_kernels(products, space, num_sms)

        for each in products:
            assert set(each.kernels) == set(ROWS)
            assert_answers(each, (2, 7, 16))


def assert_answers(product: Product, all_rows: Sequence[int]) -> None:
    for num_rows in all_rows:
        operands = product.operands(num_rows)
        expected = product.by(None, *(each.clone() for each in operands))
        assert are_equal(product(*operands), expected)


def test_products_of_one_kind_take_the_same_kernel() -> None:
    """
    Layers of a model are measured together, over each other's weights.
    """
    model = nn.Sequential(Product(normal(48, 40)), Product(normal(48, 40)))
    products = products_of(model)

    with torch.inference_mode():
        space = workspace(products, [NUM_SMS], torch.device(DEVICE))
        choose_kernels(products, space, NUM_SMS)

    first, second = products
    assert first.kernels is second.kernels
    assert first.space is second.space


def test_a_wrong_kernel_is_not_chosen() -> None:
    """
    However fast: what does not answer as torch does is no candidate.
    """
    product = Wrong(normal(48, 40))
    space = workspace([product], [NUM_SMS], torch.device(DEVICE))

    with torch.inference_mode():
        choose_kernels([product], space, NUM_SMS)

    assert set(product.kernels.values()) == {None}


class Wrong(Product):
    """Half of the answer, by any kernel."""

    def by(self, kernel: Kernel | None, *operands: Tensor) -> Tensor:
        answer = super().by(None, *operands)
        return answer if kernel is None else answer / 2
