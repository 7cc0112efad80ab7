"""What becomes int8, by how much it is off, and that the engine computes just that."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from engine.batch import pack
from engine.checkpoint import Checkpoint
from engine.configuration import read_configuration
from engine.cpu import CpuAttention
from engine.errors import UnsupportedModel
from engine.fingerprint import fingerprint
from engine.interface import Chunk
from engine.modules import speed_up
from engine.quantization import (
    QuantizedLinear,
    dequantize,
    expect_quantized,
    quantize,
    quantize_weights,
)
from engine.skeleton import bind, skeleton, state, views
from protocol.sampling import SamplingParams

GREEDY = SamplingParams(temperature=0.0, max_tokens=64)
Fixture = Callable[..., Any]


def loaded(path: Path, dtype: torch.dtype = torch.bfloat16) -> Any:
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    return model.requires_grad_(False)


def exact_reference(path: Path, checkpoint: Checkpoint) -> Any:
    """transformers' own model in float32 with exactly the weights that int8 stands for."""
    model = loaded(path).float()
    tensors = checkpoint._state
    for name in quantized_names(checkpoint):
        weight, scale = tensors[f"{name}.weight"], tensors[f"{name}.weight_scale"]
        model.get_submodule(name).weight.copy_(weight.float() * scale[:, None])
    return model


def quantized_names(checkpoint: Checkpoint) -> Iterator[str]:
    for spec in checkpoint.tensors:
        if spec.dtype == "int8":
            yield spec.name.removesuffix(".weight")


def greedy(model: Any, prompt: list[int], num_tokens: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(num_tokens):
        with torch.inference_mode():
            logits = model(torch.tensor([tokens]), use_cache=False).logits[0, -1]
        tokens.append(int(logits.argmax()))
    return tokens[len(prompt) :]


def engine_logits(engine: Any, token_ids: list[int]) -> Tensor:
    chunk = Chunk(token_ids, 0, [0, 1, 2], GREEDY, 0)
    batch = pack([chunk], engine._geometry.block_size)
    attention = CpuAttention(engine._blocks, batch)
    return engine._forward(batch, attention, torch.arange(len(token_ids))).float()


def off(found: Tensor, expected: Tensor) -> float:
    """By how much of its norm a middling row differs; some may choose other experts."""
    rows = (found - expected).norm(dim=-1) / expected.norm(dim=-1)
    return float(rows.median())


def test_a_weight_is_off_by_half_a_scale_at_most() -> None:
    """
    There and back, no weight moves further than rounding does, whatever its row's size.
    """
    numbers = torch.Generator().manual_seed(5)
    sizes = torch.logspace(-6, 3, 40)[:, None]
    weight = (torch.randn(40, 100, generator=numbers) * sizes).bfloat16()

    integers, scale = quantize(weight)

    error = (integers.double() * scale.double()[:, None] - weight.double()).abs()
    assert integers.dtype == torch.int8
    assert (error <= 0.5001 * scale.double()[:, None]).all()
    assert (integers.abs().amax(dim=1) == 127).all()


def test_an_output_of_zeros_stays_zero() -> None:
    """
    A row without any weight divides by nothing.
    """
    weight = torch.zeros(2, 8).bfloat16()
    weight[1, 3] = -2.0

    restored = dequantize(*quantize(weight))

    assert torch.equal(restored, weight)


@pytest.mark.parametrize("bias", [False, True])
def test_plain_module_computes_what_its_weights_stand_for(bias: bool) -> None:
    """
    Without any kernel of ours the answer is that of the restored weights, and the bias.
    """
    torch.manual_seed(3)
    layer = nn.Linear(24, 10, bias=bias, dtype=torch.bfloat16).requires_grad_(False)
    x = torch.randn(5, 24).bfloat16()
    module = QuantizedLinear(layer)
    module.weight.data, module.weight_scale.data = quantize(layer.weight)

    found = module(x)

    restored = dequantize(*quantize(layer.weight))
    assert torch.equal(found, nn.functional.linear(x, restored, layer.bias))


@pytest.mark.parametrize(
    ("name", "per_layer"),
    [("llama", 7), ("llama-tied", 7), ("phi3", 4), ("mixtral", 4), ("deepseek-v3", 8)],
)
def test_linear_layers_become_int8(family: Fixture, name: str, per_layer: int) -> None:
    """
    Projections are quantised; embeddings, the last layer, routers and merged experts of
    a mixture are not.
    """
    model = loaded(family(name))

    tensors = quantize_weights(model)

    names = {name for name in tensors if name.endswith(".weight")}
    assert len(names) == 3 * per_layer
    assert len(tensors) == 2 * len(names)
    assert all("proj" in name for name in names)


def test_a_gate_that_chooses_experts_is_no_projection(make_model: Fixture) -> None:
    """
    What decides on a shared expert is a linear layer too, and keeps its digits.
    """
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
    shared = {"shared_expert_intermediate_size": 16}
    model = loaded(make_model("Qwen2MoeConfig", **experts, **shared))

    names = set(quantize_weights(model))

    assert "model.layers.0.mlp.shared_expert.up_proj.weight" in names
    assert "model.layers.0.mlp.shared_expert_gate.weight" not in names


def test_a_model_without_linear_layers_is_refused(make_model: Fixture) -> None:
    """
    GPT-2 keeps its weights in layers of its own: int8 would change nothing, and says so.
    """
    path = make_model("GPT2Config", n_layer=3, n_head=4, n_embd=32, n_positions=256)
    Checkpoint.read(path, "bfloat16", 16)

    with pytest.raises(UnsupportedModel, match="none but its last"):
        Checkpoint.read(path, "bfloat16", 16, quantization="int8")


def test_int8_weights_take_half_the_memory(stories: Path, memory_of: Fixture) -> None:
    """
    The segment holds int8 and a scale for each output in place of bfloat16, and of
    everything else the same bytes.
    """
    plain = memory_of(stories, "bfloat16").checkpoint
    small = memory_of(stories, "bfloat16", "int8").checkpoint
    specs = {spec.name: spec for spec in plain.tensors}

    saved = 0
    for spec in small.tensors:
        if spec.name.endswith("weight_scale"):
            saved -= 4 * spec.shape[0]
            assert spec.dtype == "float32"
        elif spec.dtype == "int8":
            saved += spec.shape[0] * spec.shape[1]
            assert spec.shape == specs[spec.name].shape
        else:
            assert spec.dtype == specs[spec.name].dtype
    padding = 64 * len(small.tensors)
    assert saved > 150_000
    assert abs(plain.weights_bytes - small.weights_bytes - saved) < padding


def test_tied_embeddings_keep_their_bytes(family: Fixture, memory_of: Fixture) -> None:
    """
    The last layer goes on sharing the embedding's memory.
    """
    checkpoint = memory_of(family("llama-tied"), "bfloat16", "int8").checkpoint

    specs = {spec.name: spec for spec in checkpoint.tensors}

    assert specs["lm_head.weight"].dtype == "bfloat16"
    assert specs["lm_head.weight"].offset == specs["model.embed_tokens.weight"].offset


def test_a_worker_copies_no_weight(each_family: Path, memory_of: Fixture) -> None:
    """
    Int8 weights and their scales are views of the shared memory like all others.
    """
    memory = memory_of(each_family, "bfloat16", "int8")
    tensors = views(memory.weights, memory.checkpoint.tensors)
    model = skeleton(read_configuration(each_family), torch.bfloat16)

    expect_quantized(model, tensors)
    bind(model, tensors)
    speed_up(model)

    whole = torch.frombuffer(memory.writable, dtype=torch.uint8)
    first, last = whole.data_ptr(), whole.data_ptr() + whole.numel()
    bound = state(model)
    large = [name for name, tensor in bound.items() if tensor.dim() > 1]
    assert any(bound[name].dtype == torch.int8 for name in large)
    assert all(first <= bound[name].data_ptr() < last for name in large)


def test_every_family_computes_its_restored_weights(
    each_family: Path, memory_of: Fixture
) -> None:
    """
    Against transformers in float32 with the same weights, int8 is as near as bfloat16
    is with its own: it adds no error but that of the weights.
    """
    memory = memory_of(each_family, "bfloat16", "int8")
    numbers = torch.Generator().manual_seed(4)
    token_ids = torch.randint(3, 96, (41,), generator=numbers).tolist()
    plain = memory_of(each_family, "bfloat16").engine()

    found = engine_logits(memory.engine(), token_ids)

    ids = torch.tensor([token_ids])
    exact = exact_reference(each_family, memory.checkpoint)(ids).logits[0]
    plain_exact = loaded(each_family).float()(ids).logits[0]
    rounding = off(engine_logits(plain, token_ids), plain_exact)
    assert off(found, exact) <= 1.5 * rounding + 2e-3


def test_decode_says_what_restored_weights_say(
    stories: Path, memory_of: Fixture, play: Fixture
) -> None:
    """
    Greedy, the real model tells the story of transformers with the same weights.
    """
    memory = memory_of(stories, "bfloat16", "int8")
    expected = greedy(exact_reference(stories, memory.checkpoint), [1], 40)

    [story] = play(memory.engine(), [[1]], 40)

    assert story[:15] == expected[:15]
    assert sum(a == b for a, b in zip(story, expected, strict=True)) >= 30


def test_the_loader_says_by_how_much_answers_change(
    stories: Path, memory_of: Fixture
) -> None:
    """
    The facts have the error of the logits, small and not zero; without int8 there is none.
    """
    plain = memory_of(stories, "bfloat16").checkpoint.facts
    small = memory_of(stories, "bfloat16", "int8").checkpoint.facts

    assert plain.quantization_error == 0.0
    assert 1e-3 < small.quantization_error < 0.1


def test_workers_of_another_quantization_do_not_agree(
    stories: Path, memory_of: Fixture
) -> None:
    """
    An int8 worker and one of bfloat16 never share weights.
    """
    facts = memory_of(stories, "bfloat16", "int8").checkpoint.facts

    assert facts.fingerprint == fingerprint(stories, "bfloat16", "cpu", "int8")
    assert facts.fingerprint != fingerprint(stories, "bfloat16")
