"""Products of many rows against float64, whatever their sizes."""

import pytest
import torch
from torch import Tensor

from engine.elementwise import GELU_TANH, SILU
from engine.operations import Kind
from engine.packing import is_ours, packed, packs
from engine.panels import PANEL
from engine.recorder import Recorder

# Inputs around what is packed and asked for at once, outputs around a task's slice.
SIZES = [(2, 1), (30, 23), (32, 8), (34, 9), (128, 64), (130, 65), (96, 73), (512, 131)]
ROWS = [1, 15, 16, 17, 33, 47, 48, 49, 100, 145]


def normal(seed: int, *shape: int) -> Tensor:
    numbers = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=numbers).bfloat16()


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    recorder, y = Recorder(), torch.full((len(x), len(weight)), torch.nan).bfloat16()
    operands = packed(x, recorder), weight, bias, y
    recorder.do(Kind.LINEAR_PACKED, len(x), operands, (x.shape[1], len(weight)))
    return y


def gated(x: Tensor, gate: Tensor, up: Tensor, curve: int) -> Tensor:
    recorder, y = Recorder(), torch.full((len(x), len(gate)), torch.nan).bfloat16()
    sizes = x.shape[1], len(gate), curve
    operands = packed(x, recorder), gate, up, y
    recorder.do(Kind.GATED_LINEAR_PACKED, len(x), operands, sizes)
    return y


def assert_rounded(found: Tensor, exact: Tensor) -> None:
    """As near as bfloat16 comes, after sums in float32."""
    torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=2e-3)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("inputs", "outputs"), SIZES)
def test_product_is_that_of_float64(rows: int, inputs: int, outputs: int) -> None:
    """
    Whatever the sizes, an answer is the exact product, rounded once.
    """
    x, weight = normal(1, rows, inputs), normal(2, outputs, inputs)
    bias = normal(3, outputs)

    found = linear(x, weight, bias)

    assert_rounded(found, x.double() @ weight.double().T + bias.double())


@pytest.mark.parametrize("curve", [SILU, GELU_TANH])
@pytest.mark.parametrize("rows", [5, 48, 70])
def test_gated_product_is_that_of_float64(rows: int, curve: int) -> None:
    """
    Gate and up together are what torch computes of them one after the other.
    """
    x, gate, up = normal(1, rows, 72), normal(2, 83, 72), normal(3, 83, 72)

    found = gated(x, gate, up, curve)

    before = x.double() @ gate.double().T
    act = (
        torch.nn.functional.silu(before)
        if curve == SILU
        else torch.nn.functional.gelu(before, approximate="tanh")
    )
    assert_rounded(found, act * (x.double() @ up.double().T))


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_broken_row_spoils_no_other(broken: float) -> None:
    """
    A NaN or an infinity stays in its own row, also in the last row of a panel.
    """
    x, weight = normal(1, 60, 40), normal(2, 30, 40)
    x[[4, PANEL - 1, 59], 39] = broken

    found = linear(x, weight, torch.zeros(30, dtype=torch.bfloat16))

    is_broken = torch.zeros(60, dtype=torch.bool)
    is_broken[[4, PANEL - 1, 59]] = True
    assert not found[is_broken].isfinite().any()
    assert found[~is_broken].isfinite().all()


def test_a_row_does_not_depend_on_its_company() -> None:
    """
    A row's answer is the same alone and among others, wherever among them it is.
    """
    x, weight, bias = normal(1, 100, 300), normal(2, 50, 300), normal(3, 50)

    together = linear(x, weight, bias)

    for row in range(0, 100, 7):
        alone = linear(x[row : row + 1], weight, bias)
        assert torch.equal(alone[0], together[row])


def test_only_pairs_are_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    An odd number of inputs is the library's, as is everything that it multiplies faster.
    """
    monkeypatch.setattr("engine.packing.is_ours", lambda: True)
    assert (packs(768), packs(33)) == (True, False)

    monkeypatch.setattr("engine.packing.is_ours", lambda: False)
    assert not packs(768)


@pytest.mark.parametrize(
    ("features", "ours"),
    [
        ("+avx512f,+avx512bf16", True),
        ("+avx512f,+avx512bf16,+amx-bf16", False),
        ("+avx2,+fma,+avx512f", False),
        ("+avx2,+fma", True),
        ("", False),
    ],
    ids=["pairs", "tiles", "neither", "narrow", "nothing"],
)
def test_products_are_ours_where_the_library_is_no_faster(
    monkeypatch: pytest.MonkeyPatch, features: str, ours: bool
) -> None:
    """
    A processor with a unit for tiles multiplies faster with the library, one with AVX-512
    but without pairs no slower; with less than AVX-512 the library is slow.
    """
    monkeypatch.setattr("numba.config.CPU_FEATURES", features)

    assert is_ours.__wrapped__() is ours
