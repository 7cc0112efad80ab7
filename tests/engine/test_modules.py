"""Modules stand in for transformers' where they equal them, and only there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from engine.batch import pack
from engine.configuration import read_configuration
from engine.cpu import CpuAttention
from engine.interface import Chunk
from engine.modules import GatedMLP, Linear, RMSNorm, speed_up
from engine.recorder import Recorder
from engine.skeleton import bind, skeleton, views
from engine.weights import weights_of
from protocol.sampling import SamplingParams

GREEDY = SamplingParams(temperature=0.0, max_tokens=1)
Fixture = Callable[..., Any]


@pytest.fixture
def bound(memory_of: Fixture) -> Callable[..., nn.Module]:
    """A family's model as transformers has it, over weights in shared memory."""

    def build(path: Path, dtype: str) -> nn.Module:
        memory = memory_of(path, dtype)
        model = skeleton(read_configuration(path), getattr(torch, dtype))
        bind(model, views(memory.weights, memory.checkpoint.tensors))
        return model

    return build


def whole(path: Path, token_ids: Tensor, dtype: torch.dtype) -> Tensor:
    """The logits of transformers' own model."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    with torch.inference_mode():
        return model(input_ids=token_ids[None]).logits[0]


def off(logits: Tensor, exact: Tensor) -> float:
    """By how much of its norm a middling row differs; some may choose other experts."""
    rows = (logits.float() - exact).norm(dim=-1) / exact.norm(dim=-1)
    return float(rows.median())


def kinds(model: nn.Module) -> list[type]:
    return [type(module) for module in model.modules()]


class Gated(nn.Module):
    """A gated MLP whose activation is whatever a test says."""

    def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(32, 64, bias=False, dtype=torch.bfloat16)
        self.up_proj = nn.Linear(32, 64, bias=False, dtype=torch.bfloat16)
        self.down_proj = nn.Linear(64, 32, bias=False, dtype=torch.bfloat16)
        self.act_fn = activation

    def forward(self, x: Tensor) -> Tensor:
        bent = self.act_fn(self.gate_proj(x)) * self.up_proj(x)
        return self.down_proj(bent)


def test_every_family_keeps_its_logits(each_family: Path, memory_of: Fixture) -> None:
    """
    In bfloat16 a model with stand-ins is as near to float32 as transformers' own is.
    """
    engine = memory_of(each_family, "bfloat16").engine()
    token_ids = torch.randint(3, 96, (21,), generator=torch.Generator().manual_seed(4))
    chunk = Chunk(token_ids.tolist(), 0, [0, 1], GREEDY, 0)
    batch = pack([chunk], engine._geometry.block_size)
    attention = CpuAttention(engine._blocks, batch)

    found = engine._forward(batch, attention, torch.arange(21))

    exact = whole(each_family, token_ids, torch.float32)
    theirs = off(whole(each_family, token_ids, torch.bfloat16), exact)
    assert off(found, exact) <= 1.5 * theirs + 2e-3


def test_llama_is_replaced_throughout(
    family: Fixture, bound: Callable[..., nn.Module]
) -> None:
    """
    Of a Llama no linear layer, norm or MLP of transformers is left.
    """
    model = bound(family("llama"), "bfloat16")

    speed_up(model)

    found = kinds(model)
    assert found.count(GatedMLP) == 3
    assert found.count(RMSNorm) == 7
    assert nn.Linear not in found


@pytest.mark.parametrize("name", ["llama", "gemma2", "qwen3"])
def test_float32_is_left_to_transformers(
    family: Fixture, bound: Callable[..., nn.Module], name: str
) -> None:
    """
    In float32, where greedy output is transformers' to the token, nothing is replaced.
    """
    model = bound(family(name), "float32")
    before = kinds(model)

    speed_up(model)

    assert kinds(model) == before


def test_an_unknown_activation_stays() -> None:
    """
    An MLP that looks like one of ours and computes something else is not replaced;
    its projections are.
    """
    model = nn.Sequential(Gated(torch.sin), Gated(nn.functional.silu))

    speed_up(model)

    assert [type(module) for module in model] == [Gated, GatedMLP]
    assert type(model[0].gate_proj) is Linear


def test_a_norm_of_another_kind_stays() -> None:
    """
    A class called RMSNorm that computes something else is not replaced.
    """

    class StrangeRMSNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(64, dtype=torch.bfloat16))
            self.eps = 1e-6

        def forward(self, x: Tensor) -> Tensor:
            return x / x.abs().mean(-1, keepdim=True) * self.weight

    model = nn.Sequential(StrangeRMSNorm())

    speed_up(model)

    assert type(model[0]) is StrangeRMSNorm


@pytest.mark.parametrize("num_rows", [1, 5, 32, 33, 100])
@pytest.mark.parametrize("bias", [False, True])
def test_stand_in_answers_alike_for_any_number_of_rows(
    num_rows: int, bias: bool
) -> None:
    """
    Few rows and many take different ways to the same answer.
    """
    torch.manual_seed(num_rows)
    layer = nn.Linear(48, 40, bias=bias, dtype=torch.bfloat16).requires_grad_(False)
    x = torch.randn(2, num_rows, 48).transpose(0, 1).bfloat16()

    weights = weights_of(layer)
    assert weights is not None
    found = Linear(layer, weights, Recorder())(x)

    expected = nn.functional.linear(x.float(), layer.weight.float())
    expected = expected if layer.bias is None else expected + layer.bias.float()
    torch.testing.assert_close(found.float(), expected, rtol=2**-7, atol=1e-2)
