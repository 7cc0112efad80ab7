"""Stand-ins over int8 and compressed weights answer as torch does, few rows and many."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from engine.batch import pack
from engine.compression import CompressedLinear, compress
from engine.configuration import read_configuration
from engine.cpu import CpuAttention
from engine.interface import Chunk
from engine.modules import GatedMLP, Linear, speed_up
from engine.operations import Kind
from engine.packing import is_ours
from engine.quantization import QuantizedLinear, expect_quantized, quantize
from engine.recorder import Native, Recorder
from engine.skeleton import bind, skeleton, views
from engine.weights import weights_of
from protocol.sampling import SamplingParams

GREEDY = SamplingParams(temperature=0.0, max_tokens=64)
Fixture = Callable[..., Any]
Form = Callable[[int, int, bool], nn.Module]


def quantized(inputs: int, outputs: int, bias: bool) -> QuantizedLinear:
    layer = nn.Linear(inputs, outputs, bias=bias, dtype=torch.bfloat16)
    module = QuantizedLinear(layer.requires_grad_(False))
    module.weight.data, module.weight_scale.data = quantize(layer.weight)
    return module


def compressed(inputs: int, outputs: int, bias: bool) -> CompressedLinear:
    layer = nn.Linear(inputs, outputs, bias=bias, dtype=torch.bfloat16)
    module = CompressedLinear(layer.requires_grad_(False))
    rows = compress(layer.weight)
    assert rows is not None
    module.weight_rows.data = rows
    return module


def stand_in(layer: nn.Module) -> Linear:
    weights = weights_of(layer)
    assert weights is not None
    return Linear(layer, weights, Recorder())


# Elsewhere no weight is compressed.
by_form = pytest.mark.parametrize(
    "form", [quantized, *([compressed] if is_ours() else [])]
)


class Gated(nn.Module):
    """A gated MLP whose activation is whatever a test says."""

    def __init__(self, form: Form, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = form(256, 384, False), form(256, 384, False)
        self.down_proj = form(384, 256, False)
        self.act_fn = activation

    def forward(self, x: Tensor) -> Tensor:
        bent = self.act_fn(self.gate_proj(x)) * self.up_proj(x)
        return self.down_proj(bent)


@by_form
@pytest.mark.parametrize("num_rows", [1, 5, 32, 33, 100])
@pytest.mark.parametrize("bias", [False, True])
def test_stand_in_answers_alike_for_any_number_of_rows(
    num_rows: int, bias: bool, form: Form
) -> None:
    """
    Few rows and many take different ways to the same answer.
    """
    torch.manual_seed(num_rows)
    layer = form(1000, 40, bias)
    x = torch.randn(2, num_rows, 1000).transpose(0, 1).bfloat16()

    found = stand_in(layer)(x)

    # torch multiplies int8 as it is rounded to bfloat16, and we as it is.
    torch.testing.assert_close(found, layer(x), rtol=2**-7, atol=4e-2)


@by_form
@pytest.mark.parametrize("num_rows", [1, 7, 33])
@pytest.mark.parametrize(
    "activation",
    [nn.functional.silu, nn.GELU(approximate="tanh")],
    ids=["silu", "gelu"],
)
def test_gated_mlp_is_replaced_whole(
    activation: Callable[[Tensor], Tensor], num_rows: int, form: Form
) -> None:
    """
    Gate and up in one operation, and down, are what the module itself computes.
    """
    torch.manual_seed(num_rows)
    plain = Gated(form, activation)
    model = nn.Sequential(plain)
    x = torch.randn(1, num_rows, 256).bfloat16()
    expected = plain(x).float()

    speed_up(model)

    found = model(x).float()
    assert type(model[0]) is GatedMLP
    assert type(model[0].down_proj) is Linear
    assert (found - expected).norm() <= 0.01 * expected.norm()


@by_form
def test_an_unknown_activation_stays(form: Form) -> None:
    """
    An MLP that computes something else is not replaced; its projections are.
    """
    model = nn.Sequential(Gated(form, torch.sin))

    speed_up(model)

    assert type(model[0]) is Gated
    assert type(model[0].up_proj) is Linear


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma2", "phi3", "deepseek-v3"])
def test_no_plain_int8_module_is_left(
    family: Fixture, memory_of: Fixture, name: str
) -> None:
    """
    Of these families every quantised layer is computed by a kernel of ours.
    """
    memory = memory_of(family(name), "bfloat16", "int8")
    tensors = views(memory.weights, memory.checkpoint.tensors)
    model = skeleton(read_configuration(family(name)), torch.bfloat16)
    expect_quantized(model, tensors)
    bind(model, tensors)

    speed_up(model)

    kinds = [type(module) for module in model.modules()]
    assert QuantizedLinear not in kinds
    assert Linear in kinds


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "gemma2"])
def test_int8_is_recorded(family: Fixture, memory_of: Fixture, name: str) -> None:
    """
    A decode step over int8 weights is a tape, and its products are operations of ours.
    """
    engine = bound_engine(family(name), memory_of)

    engine._tapes.logits(step(engine, 2, 1), engine._blocks)

    [tape] = engine._tapes._tapes.values()
    assert tape is not None
    kinds = [o.kind for group in tape._groups for o in group if isinstance(o, Native)]
    assert kinds.count(Kind.LINEAR_INT8) >= 3 * 3
    assert kinds.count(Kind.LINEAR) == 1  # the last layer
    assert Kind.DEQUANTIZE not in kinds


@pytest.mark.parametrize("num_rows", [1, 3, 8])
def test_a_tape_answers_as_the_model(
    each_family: Path, memory_of: Fixture, num_rows: int
) -> None:
    """
    Of every family to the bit, for other positions than it was recorded with.
    """
    engine = bound_engine(each_family, memory_of)
    tapes = engine._tapes
    tapes.logits(step(engine, num_rows, 1), engine._blocks)  # records

    for position in (4, 16, 23):
        batch = step(engine, num_rows, position)
        rows = torch.arange(num_rows)
        attention = CpuAttention(engine._blocks, batch)
        expected = engine._forward(batch, attention, rows).clone()
        found = tapes.logits(batch, engine._blocks)

        assert torch.equal(found, expected)


def bound_engine(path: Path, memory_of: Fixture) -> Any:
    """An engine over int8 weights and blocks of zeros."""
    memory = memory_of(path, "bfloat16", "int8")
    memory.blocks[:] = bytes(len(memory.blocks))
    return memory.engine()


def step(engine: Any, num_rows: int, position: int) -> Any:
    """One token of each of so many sequences, over blocks of their own."""
    chunks = [
        Chunk([5 + row], position + row % 3, [2 * row, 2 * row + 1], GREEDY, 0)
        for row in range(num_rows)
    ]
    return pack(chunks, engine._geometry.block_size)
