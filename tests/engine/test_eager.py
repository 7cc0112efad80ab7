"""An engine without kernels computes the same model over the same memory."""

import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engine import eager
from engine.batch import pack
from engine.eager import EagerEngine
from engine.errors import UnsupportedModel
from engine.interface import Chunk
from engine.packing import is_ours
from engine.transformer import TransformerEngine
from protocol.sampling import SamplingParams

GREEDY = SamplingParams(temperature=0.0, max_tokens=64)
PROMPTS = [[5 + 7 * i % 80 for i in range(41)], [3, 4, 5], [9] * 18]
# Wide enough for compressed weights.
WIDE = {"hidden_size": 256, "intermediate_size": 384, "initializer_range": 0.05}
Fixture = Callable[..., Any]

# Loads a model and computes a step of it, then says how much machine code there is.
SERVE_ALONE = """
import sys
from pathlib import Path
from engine.checkpoint import Checkpoint
from engine.compiled import MACHINE_CODE
from engine.eager import EagerEngine
from engine.memory import MappedMemory
path = Path(sys.argv[1])
read = Checkpoint.read(path, "bfloat16", 16, compression=False, kernels=False)
weights = memoryview(bytearray(read.weights_bytes))
read.copy_into(weights)
blocks = memoryview(bytearray(8 * read.geometry.block_bytes))
memory = MappedMemory(weights, read.tensors, blocks, read.geometry)
EagerEngine(path, memory, threads=1).warm_up()
print(len(list(MACHINE_CODE.rglob("*.nbc"))))
"""


def logits(engine: TransformerEngine) -> Tensor:
    """Of the last token of a prompt and of a single one."""
    chunks = [Chunk(PROMPTS[0], 0, [4, 2, 7], GREEDY, 0), Chunk([8], 0, [1], GREEDY, 0)]
    batch = pack(chunks, engine._geometry.block_size)
    return engine._tapes.logits(batch, engine._blocks).float().clone()


@pytest.mark.parametrize("name", ["qwen2", "gemma2", "deepseek-v3"])
def test_it_answers_as_generate_does(
    name: str, family: Fixture, memory_of: Fixture, play: Fixture, reference: Fixture
) -> None:
    """
    Packed, chunked and scattered, greedy output is `generate`'s, token for token: with
    windows, caps, and values of another size than keys.
    """
    engine = memory_of(family(name)).eager_engine()

    outputs = play(engine, PROMPTS, 12)

    assert outputs == reference(family(name), PROMPTS, 12)


def test_another_engine_goes_on_in_the_middle_of_a_sentence(
    stories: Path, memory_of: Fixture, sequences_of: Fixture, reference: Fixture
) -> None:
    """
    Of the same blocks, with the same tokens.
    """
    first = memory_of(stories).eager_engine()
    sequences = sequences_of([[1], *PROMPTS])
    while not sequences.are_done(15):
        sequences.step(first, 30)

    second = first.with_kernels(memory_of(stories).checkpoint.facts)

    while not sequences.are_done(30):
        sequences.step(second, 30)
    assert sequences.outputs() == reference(stories, [[1], *PROMPTS], 30)


@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_in_bfloat16_both_answer_alike(
    stories: Path, memory_of: Fixture, quantization: str
) -> None:
    """
    Within what it rounds; the one that follows has tapes, and the first says why not.
    """
    memory = memory_of(stories, "bfloat16", quantization)
    first = memory.eager_engine()

    second = first.with_kernels(memory.checkpoint.facts)

    found, expected = logits(second), logits(first)
    assert (found - expected).norm() < 0.02 * expected.norm()
    assert first.without_tapes == "kernels are being compiled"
    assert second.without_tapes == ""


@pytest.mark.parametrize(
    ("dtype", "num_tokens", "is_wanted"),
    [("bfloat16", 33, True), ("bfloat16", 3, False), ("float32", 33, False)],
)
def test_only_where_it_gains_does_it_compute_products_otherwise(
    dtype: str,
    num_tokens: int,
    is_wanted: bool,
    family: Fixture,
    memory_of: Fixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """
    Products of bfloat16 by float32 gain with many rows. Who listens for them hears of every
    call of torch, which costs a step of few rows half of its time again.
    """
    entered = []

    def listening() -> AbstractContextManager[None]:
        entered.append(num_tokens)
        return nullcontext()

    engine = memory_of(family("llama"), dtype).eager_engine()
    monkeypatch.setattr(eager, "quick_linear", listening)

    engine.step([Chunk([5] * num_tokens, 0, [0, 1, 2], GREEDY, 0)])

    assert bool(entered) == is_wanted


@pytest.mark.skipif(not is_ours(), reason="no weight is compressed")
def test_compressed_weights_are_what_they_were(
    make_model: Fixture, memory_of: Fixture
) -> None:
    """
    Expanded for each product, to the bit: so are the answers.
    """
    path = make_model("LlamaConfig", **WIDE)
    compressed = memory_of(path, "bfloat16")
    plain = memory_of(path, "bfloat16", compression=False)

    found, expected = logits(compressed.eager_engine()), logits(plain.eager_engine())

    assert compressed.checkpoint.weights_bytes < plain.checkpoint.weights_bytes
    assert torch.equal(found, expected)


def test_who_would_answer_otherwise_does_not_follow(
    family: Callable[[str], Path], memory_of: Fixture
) -> None:
    """
    The loader could not prove the faster modules: that is done before they are used.
    """
    memory = memory_of(family("llama"), "bfloat16")
    engine: EagerEngine = memory.eager_engine()
    attention = type(engine._other.model.layers[0].self_attn)

    class Other(attention):  # type: ignore[misc, valid-type]
        def forward(self, hidden_states: Tensor, **keywords: Any) -> Any:
            is_replaced = type(self.q_proj) is not torch.nn.Linear
            return super().forward(hidden_states * (1 + 2 * is_replaced), **keywords)

    for layer in engine._other.model.layers:
        layer.self_attn.__class__ = Other

    with pytest.raises(UnsupportedModel, match="with faster modules its logits differ"):
        engine.with_kernels(memory.checkpoint.facts)


def test_a_core_is_left_to_the_compiler(
    family: Callable[[str], Path], memory_of: Fixture
) -> None:
    """
    Of several, until kernels are there, or will never be.
    """
    memory = memory_of(family("qwen2"))
    engine = EagerEngine(memory.path, memory.mapped, threads=0)
    before = engine.max_threads

    follower = engine.with_kernels(memory.checkpoint.facts)
    engine.alone()

    assert before == max(1, follower.max_threads - 1)
    assert engine.max_threads == follower.max_threads


def test_nothing_is_compiled_for_it(
    family: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """
    Neither to load a model nor to serve it.
    """
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    command = [sys.executable, "-c", SERVE_ALONE, str(family("qwen2"))]

    answer = subprocess.run(command, capture_output=True, text=True, check=True)

    assert answer.stdout == "0\n"
