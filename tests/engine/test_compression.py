"""Compressed weights: to the bit the same, smaller, and multiplied as they lie."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear, silu

from engine.batch import pack
from engine.compressed import compressed_tile
from engine.compression import (
    CompressedLinear,
    compress,
    compress_weights,
    decompress,
    expect_compressed,
)
from engine.elementwise import GELU_TANH, SILU
from engine.interface import Chunk
from engine.matmul import AT_ONCE, TILE
from engine.operations import Kind
from engine.packing import is_ours, packed
from engine.recorder import Recorder
from protocol.sampling import SamplingParams

Fixture = Callable[..., Any]
GREEDY = SamplingParams(temperature=0.0, max_tokens=64)
# Inputs around a group and half of one, outputs around what is multiplied at once.
SIZES = [(256, 1), (354, 23), (384, 8), (450, 67), (512, 64), (1000, 131)]
WIDE = {"hidden_size": 256, "intermediate_size": 384, "initializer_range": 0.05}

only_where_used = pytest.mark.skipif(not is_ours(), reason="no weight is compressed")


def normal(seed: int, *shape: int) -> Tensor:
    numbers = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=numbers).bfloat16()


def spread(seed: int, outputs: int, inputs: int) -> Tensor:
    """Weights of which many are in no table: of every size there is."""
    numbers = torch.Generator().manual_seed(seed)
    sizes = torch.where(torch.rand(outputs, inputs, generator=numbers) < 0.01, 20, 0)
    return (normal(seed, outputs, inputs).float() * torch.exp(-sizes)).bfloat16()


def compressed(weight: Tensor) -> Tensor:
    rows = compress(weight)
    assert rows is not None
    return rows


def product(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """By the kernel for few rows or for many, whichever a model would take."""
    recorder, rows = Recorder(), compressed(weight)
    y = torch.full((len(x), len(weight)), torch.nan).bfloat16()
    kind, left = Kind.LINEAR_COMPRESSED, x
    if len(x) > 32:
        kind, left = Kind.LINEAR_COMPRESSED_PACKED, packed(x, recorder)
    sizes = x.shape[1], len(weight), rows.shape[1]
    recorder.do(kind, len(x), (left, rows, bias, y), sizes)
    return y


def gated(x: Tensor, gate: Tensor, up: Tensor, curve: int) -> Tensor:
    recorder, gates, ups = Recorder(), compressed(gate), compressed(up)
    y = torch.full((len(x), len(gate)), torch.nan).bfloat16()
    kind, left = Kind.GATED_LINEAR_COMPRESSED, x
    if len(x) > 32:
        kind, left = Kind.GATED_LINEAR_COMPRESSED_PACKED, packed(x, recorder)
    sizes = x.shape[1], len(gate), gates.shape[1], ups.shape[1], curve
    recorder.do(kind, len(x), (left, gates, ups, y), sizes)
    return y


def assert_rounded(found: Tensor, exact: Tensor) -> None:
    """As near as bfloat16 comes, after sums in float32."""
    torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=4e-3)


def bits(weight: Tensor) -> Tensor:
    return weight.view(torch.int16)


@pytest.mark.parametrize(("inputs", "outputs"), SIZES)
@pytest.mark.parametrize("make", [normal, spread])
def test_not_a_bit_is_lost(make: Fixture, inputs: int, outputs: int) -> None:
    """
    There and back a weight is what it was, in tables or not, in whole groups or not.
    """
    weight = make(3, outputs, inputs)

    restored = decompress(compressed(weight), inputs)

    assert torch.equal(bits(restored), bits(weight))


def test_odd_numbers_are_kept() -> None:
    """
    Infinities, NaN with their digits, denormal numbers and both zeros too.
    """
    weight = normal(1, 6, 256)
    odd = [0x7F80, 0xFF80, 0x7FC1, 0xFFFF, 0x0001, 0x8000, 0x0000, 0x7F7F]
    bits(weight)[2, :8] = torch.tensor(odd).to(torch.int16)
    weight[3] = 0
    weight[4] = -0.0

    restored = decompress(compressed(weight), 256)

    assert torch.equal(bits(restored), bits(weight))


def test_a_quarter_is_saved() -> None:
    """
    Of a layer's weights, as large ones are: twelve of sixteen bits, and a table per row.
    """
    weight = normal(1, 300, 2048) * 0.02

    rows = compressed(weight)

    assert 0.75 < rows.nbytes / weight.nbytes < 0.77


@pytest.mark.parametrize("inputs", [16, 64, 192, 1001])
def test_rows_that_do_not_fit_stay(inputs: int) -> None:
    """
    Where tables and groups would take what the codes save, there is nothing to be had;
    and pairs must have no rest.
    """
    assert compress(normal(1, 50, inputs)) is None


def test_what_has_no_pattern_stays() -> None:
    """
    Weights whose sizes are all over the place are not made larger.
    """
    numbers = torch.Generator().manual_seed(1)
    words = torch.randint(-(2**15), 2**15, (40, 512), generator=numbers)

    assert compress(words.to(torch.int16).view(torch.bfloat16)) is None


@pytest.mark.parametrize("rows", [1, 2, 7, 32])
@pytest.mark.parametrize(("inputs", "outputs"), SIZES)
def test_product_of_few_rows_is_that_of_float64(
    rows: int, inputs: int, outputs: int
) -> None:
    """
    Whatever the sizes, an answer is the exact product, rounded once.
    """
    x, weight = normal(1, rows, inputs), spread(2, outputs, inputs)
    bias = normal(3, outputs)

    found = product(x, weight, bias)

    assert_rounded(found, x.double() @ weight.double().T + bias.double())


@only_where_used
@pytest.mark.parametrize("rows", [33, 49, 300])
@pytest.mark.parametrize(("inputs", "outputs"), SIZES)
def test_product_of_many_rows_is_that_of_plain_weights(
    rows: int, inputs: int, outputs: int
) -> None:
    """
    To the bit: what is expanded for a few panels is what was compressed.
    """
    x, weight = normal(1, rows, inputs), spread(2, outputs, inputs)
    bias = normal(3, outputs)

    found = product(x, weight, bias)

    recorder, plain = Recorder(), torch.empty_like(found)
    operands = packed(x, recorder), weight, bias, plain
    recorder.do(Kind.LINEAR_PACKED, rows, operands, (inputs, outputs))
    assert torch.equal(found, plain)


@pytest.mark.parametrize("curve", [SILU, GELU_TANH])
@pytest.mark.parametrize("rows", [1, 5, 48, 70])
def test_gated_product_is_that_of_float64(rows: int, curve: int) -> None:
    """
    Gate and up together are what torch computes of them one after the other, though
    one may have more exceptions than the other.
    """
    if rows > 32 and not is_ours():
        pytest.skip("no weight is compressed")
    x, gate, up = normal(1, rows, 256), normal(2, 83, 256) * 0.1, spread(3, 83, 256)

    found = gated(x, gate, up, curve)

    before = x.double() @ gate.double().T
    act = silu(before) if curve == SILU else gelu(before, approximate="tanh")
    exact = act * (x.double() @ up.double().T)
    torch.testing.assert_close(found.double(), exact, rtol=2**-7, atol=2e-2)


def test_a_row_does_not_depend_on_its_company() -> None:
    """
    A row's answer is the same alone and among others.
    """
    x, weight, bias = normal(1, 16, 350), spread(2, 50, 350), normal(3, 50)

    together = product(x, weight, bias)

    for row in range(16):
        assert torch.equal(product(x[row : row + 1], weight, bias)[0], together[row])


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_broken_weight_spoils_its_own_output_only(broken: float) -> None:
    """
    It is an exception of its row, and shows there.
    """
    x, weight = normal(1, 5, 256), normal(2, 30, 256)
    weight[7, 255] = broken

    found = product(x, weight, torch.zeros(30, dtype=torch.bfloat16))

    assert not found[:, 7].isfinite().any()
    found[:, 7] = 0
    assert found.isfinite().all()


@pytest.mark.parametrize(
    ("outputs", "row_bytes"), [(16, 400), (768, 1168), (896, 7312), (151_936, 1360)]
)
def test_a_task_reads_much_in_a_row_and_leaves_some_to_others(
    outputs: int, row_bytes: int
) -> None:
    """
    Few large weights are cut at all, and small ones into no crumbs.

    Up to a row's rounding, tasks have 64 to 256 KB, and fewer than sixteen of them only
    where they would have less.
    """
    tile = compressed_tile(outputs, row_bytes)

    rounding = max(AT_ONCE, TILE) * row_bytes
    assert tile % AT_ONCE == 0
    assert 2**16 - rounding < tile * row_bytes <= 2**18 + rounding
    assert tile * 16 <= outputs + 16 * TILE or tile * row_bytes <= 2**16 + rounding


def test_plain_module_computes_the_same() -> None:
    """
    Without any kernel of ours the answer is that of the weights, and the bias.
    """
    layer = nn.Linear(256, 10, dtype=torch.bfloat16).requires_grad_(False)
    module, x = CompressedLinear(layer), normal(1, 5, 256)
    module.weight_rows.data = compressed(layer.weight)

    assert torch.equal(module(x), linear(x, layer.weight, layer.bias))


def test_only_weights_of_linear_layers_are_compressed() -> None:
    """
    Embeddings stay, and what is small, and what shares its memory; but a last layer,
    which is read in every step, gets weights of its own.
    """
    model = Tied()
    tensors = dict(model.named_parameters(remove_duplicate=False))

    compress_weights(model, tensors)

    kept = {"embed.weight", "small.weight", "large.bias", "twin.weight", "other.weight"}
    assert set(tensors) == kept | {"large.weight_rows", "head.weight_rows"}
    expect_compressed(model, tensors)
    kinds = {name: type(module) for name, module in model.named_children()}
    compressed = {name for name, kind in kinds.items() if kind is CompressedLinear}
    assert compressed == {"large", "head"}


class Tied(nn.Module):
    """An embedding, some layers, and a last one with the embedding's weights."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 256, dtype=torch.bfloat16)
        self.small = nn.Linear(16, 256, bias=False, dtype=torch.bfloat16)
        self.large = nn.Linear(256, 256, dtype=torch.bfloat16)
        self.twin = nn.Linear(256, 256, bias=False, dtype=torch.bfloat16)
        self.other = nn.Linear(256, 256, bias=False, dtype=torch.bfloat16)
        self.other.weight = self.twin.weight
        self.head = nn.Linear(256, 20, bias=False, dtype=torch.bfloat16)
        self.head.weight = self.embed.weight

    def get_output_embeddings(self) -> nn.Module:
        return self.head


@only_where_used
@pytest.mark.parametrize("name", ["LlamaConfig", "Phi3Config", "Gemma2Config"])
def test_a_model_answers_as_with_plain_weights(
    make_model: Fixture, memory_of: Fixture, name: str
) -> None:
    """
    Its segment is smaller. Prompts are computed to the bit, and decode steps, whose sums
    are in another order, as near as float32 is.
    """
    path = make_model(name, **WIDE)
    plain, small = (memory_of(path, "bfloat16", compression=c) for c in (False, True))

    names = [spec.name for spec in small.checkpoint.tensors]
    assert any(name.endswith("weight_rows") for name in names)
    assert small.checkpoint.weights_bytes < 0.9 * plain.checkpoint.weights_bytes
    engines = [memory.engine() for memory in (plain, small)]
    for token_ids, tolerance in (list(range(3, 60)), 0.0), ([7], 1e-2):
        for _ in range(2):  # by modules, and by the tape that was recorded then
            expected, found = (logits(engine, token_ids) for engine in engines)
            assert (found - expected).norm() <= tolerance * expected.norm()


def test_another_dtype_is_left_alone(make_model: Fixture, memory_of: Fixture) -> None:
    """
    In float32 a model is transformers' own, weights and all, also where they would fit.
    """
    specs = memory_of(make_model("LlamaConfig", **WIDE)).checkpoint.tensors

    assert {spec.dtype for spec in specs} == {"float32"}


def logits(engine: Any, token_ids: list[int]) -> Tensor:
    """Of the last token of a sequence, from its start."""
    chunk = Chunk(token_ids, 0, [0, 1, 2, 3], GREEDY, 0)
    batch = pack([chunk], engine._geometry.block_size)
    found: Tensor = engine._tapes.logits(batch, engine._blocks)
    return found.float().clone()
