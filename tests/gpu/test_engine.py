"""The engine on a real GPU: exact in float32, close in bfloat16, with graphs and without."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_memory import DeviceMemory
from small_models import FAMILIES, NUM_BLOCKS, generate, play, save_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from engine.batch import pack
from engine.configuration import read_configuration
from engine.cuda import CudaAttention, DeviceBlocks, StepInputs
from engine.cuda_engine import CudaEngine, Limits
from engine.cuda_modules import speed_up
from engine.forward import Forward
from engine.interface import Chunk
from engine.memory import MappedMemory
from engine.partition import Lanes
from engine.skeleton import bind, skeleton, views
from protocol.sampling import SamplingParams

MODELS = Path(__file__).parents[2] / "models"
PROMPTS = [[5, 9, 3, 7] * 9, [4, 8, 15, 16, 23, 42], [11]]
LIMITS = Limits(max_num_seqs=8, max_model_len=256)


def engine_over(memory: DeviceMemory, lanes: Lanes | None = None) -> CudaEngine:
    lanes = lanes or Lanes.open("decode", [])
    return CudaEngine.build(memory.path, memory.mapped(), LIMITS, lanes)


@pytest.mark.parametrize("name", FAMILIES)
def test_greedy_output_is_that_of_transformers(
    name: str, tmp_path: Path, device_memory: Callable[..., DeviceMemory]
) -> None:
    """
    In float32, packed, in uneven chunks, over scattered blocks, with CUDA graphs.
    """
    class_name, changes = FAMILIES[name]
    path = save_model(tmp_path, class_name, **changes)
    engine = engine_over(device_memory(path))

    answers = play(engine, PROMPTS, 20)

    assert answers == generate(path, PROMPTS, 20)


def test_the_real_small_model_tells_its_story(
    device_memory: Callable[..., DeviceMemory],
) -> None:
    """
    A trained model's float32 text is transformers', token for token.
    """
    path = MODELS / "stories260K"
    engine = engine_over(device_memory(path))

    answers = play(engine, PROMPTS, 60)

    assert answers == generate(path, PROMPTS, 60)


def test_bfloat16_logits_are_near_those_of_float32(
    device_memory: Callable[..., DeviceMemory],
) -> None:
    """
    Fused modules round no more than transformers' own do in bfloat16.
    """
    path = MODELS / "demo"
    memory = device_memory(path, "bfloat16").mapped()
    tokens = torch.randint(5, 4000, (128,), generator=torch.Generator().manual_seed(1))
    exact, rounded = (
        logits_of_transformers(path, tokens, dtype)
        for dtype in (torch.float32, torch.bfloat16)
    )

    model = skeleton(read_configuration(path), torch.bfloat16)
    bind(model, views(memory.weights, memory.tensors))
    speed_up(model)
    found = paged_logits(model, memory, tokens)

    error, usual = (float((x - exact).norm() / exact.norm()) for x in (found, rounded))
    print(f"relative error of bfloat16 logits: {error:.2e}, transformers' {usual:.2e}")
    assert error < 1.05 * usual


def logits_of_transformers(path: Path, tokens: Tensor, dtype: torch.dtype) -> Tensor:
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    logits: Tensor = model(tokens.unsqueeze(0)).logits[0].detach().float()
    return logits


def paged_logits(model: Any, memory: MappedMemory, tokens: Tensor) -> Tensor:
    """Of every token, by our attention."""
    blocks = DeviceBlocks.over(memory.blocks, memory.geometry)
    params = SamplingParams(temperature=0.0, max_tokens=1)
    batch = pack([Chunk(tokens.tolist(), 0, list(range(8)), params, 0)], 16, 16)
    device = blocks.memory.device
    attention = CudaAttention(blocks, StepInputs.upload(batch, device))
    rows = torch.arange(len(tokens))
    return Forward(model, device)(batch, attention, rows).float().cpu()


def test_a_split_changes_no_token(device_memory: Callable[..., DeviceMemory]) -> None:
    """
    On parts of the multiprocessors, and changing between them and the whole at every step,
    the tokens are the same.
    """
    memory = device_memory(MODELS / "stories260K")
    expected = play(engine_over(memory), PROMPTS, 40)
    lanes = Lanes.open("decode", [30, 50, 70])
    engine = engine_over(memory, lanes)
    step, count = engine.step, iter(range(10_000))

    def switching(chunks: list[Chunk]) -> object:
        engine.share((30, 50, 70, 100)[next(count) % 4], 1)
        return step(chunks)

    engine.step = switching  # type: ignore[method-assign]
    answers = play(engine, PROMPTS, 40)

    assert lanes.mode == "green", lanes.reason
    assert answers == expected


def test_sampled_tokens_depend_on_the_seed_alone(
    device_memory: Callable[..., DeviceMemory],
) -> None:
    """
    The same seed draws the same tokens, alone or in a batch, from a graph or not.
    """
    engine = engine_over(device_memory(MODELS / "stories260K"))
    params = SamplingParams(temperature=0.8, top_p=0.9, seed=7, max_tokens=64)

    together = play(engine, PROMPTS, 30, params)
    alone = [play(engine, [prompt], 30, params)[0] for prompt in PROMPTS]

    assert together == alone


def test_copied_blocks_are_equal(device_memory: Callable[..., DeviceMemory]) -> None:
    """
    Copy on write copies a block of all layers, and nothing else.
    """
    memory = device_memory(MODELS / "stories260K")
    engine = engine_over(memory)
    blocks = memory.blocks.view(NUM_BLOCKS, -1)
    blocks.copy_(torch.randint(0, 255, blocks.shape, device="cuda", dtype=torch.uint8))
    before = blocks.clone()

    engine.copy_blocks([(3, 5)])

    before[5] = before[3]
    assert torch.equal(blocks, before)
