"""The engine's parts for a GPU, with Triton's interpreter in its place."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from weakref import ref

import pytest
import torch
from small_models import FAMILIES, save_model
from torch.nn import Identity
from transformers import AutoModelForCausalLM
from triton_device import DEVICE

from engine.batch import pack
from engine.configuration import max_position, read_configuration
from engine.cuda import (
    CudaAttention,
    DecodeAttention,
    DeviceBlocks,
    StepInputs,
    on_device,
)
from engine.cuda_modules import GatedMLP, Part, RMSNorm, spanning, speed_up
from engine.errors import UnsupportedModel
from engine.fingerprint import fingerprint
from engine.forward import Forward
from engine.graphs import Graph, Packed, Rows, Sizes
from engine.interface import Chunk
from engine.kernel_choice import choose_kernels, products_of, workspace
from engine.products import Product, Sum
from engine.proof import learn, own_logits, prove, prove_stand_ins
from engine.skeleton import bind, skeleton, state
from protocol.memory import DType, KVGeometry, LayerGeometry, ModelFacts
from protocol.sampling import SamplingParams

BACKEND = on_device(torch.device(DEVICE))
GREEDY = SamplingParams(temperature=0.0, max_tokens=1)


class Model:
    """A tiny model as transformers runs it, and as we do on a GPU."""

    def __init__(self, path: Path, dtype: DType) -> None:
        config = read_configuration(path)
        self.loaded: Any = AutoModelForCausalLM.from_pretrained(
            path, dtype=getattr(torch, dtype), attn_implementation="eager"
        )
        self.loaded.eval().requires_grad_(False)
        self.served = skeleton(config, getattr(torch, dtype))
        bind(self.served, state(self.loaded))
        self.geometry = learn(
            self.served,
            lambda layers: KVGeometry(
                layers=layers, dtype=dtype, block_size=16, device="cuda"
            ),
        )
        for model in (self.loaded, self.served):
            model.to(DEVICE)
        self.facts = ModelFacts(
            model=str(path),
            fingerprint=fingerprint(path, dtype, "cuda"),
            vocab_size=config.get_text_config().vocab_size,
            max_position=max_position(config),
        )


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Tiny models of two layers, of different kinds if they have such: the interpreter
    is slow.
    """

    @cache
    def directory(name: str) -> Path:
        class_name, changes = FAMILIES[name]
        fewer: dict[str, object] = {"num_hidden_layers": 2}
        if "layer_types" in changes:
            fewer["layer_types"] = changes["layer_types"][:2]
        folder = tmp_path_factory.mktemp(name)
        return save_model(folder, class_name, **{**changes, **fewer})

    return directory


@pytest.mark.parametrize("name", ["llama", "gemma2", "deepseek-v3", "qwen3-moe"])
def test_triton_attention_computes_the_model(
    name: str, family: Callable[[str], Path]
) -> None:
    """
    Over paged memory in a GPU's layout the logits are those of transformers' attention.
    """
    model = Model(family(name), "float32")

    prove(model.loaded, model.served, model.facts, model.geometry, BACKEND)


def test_a_wrong_attention_is_found(family: Callable[[str], Path]) -> None:
    """
    The proof is no formality: a model that scales its scores otherwise is refused.
    """
    model = Model(family("llama"), "float32")
    for layer in model.served.model.layers:
        layer.self_attn.scaling *= 3

    with pytest.raises(UnsupportedModel, match="logits differ"):
        prove(model.loaded, model.served, model.facts, model.geometry, BACKEND)


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma3"])
def test_stand_ins_answer_as_the_modules(
    name: str, family: Callable[[str], Path]
) -> None:
    """
    With fused modules a bfloat16 model still gives its logits.
    """
    model = Model(family(name), "bfloat16")

    speed_up(model.served)

    kinds = {type(module) for module in model.served.modules()}
    assert {RMSNorm, GatedMLP} <= kinds
    adds_itself = isinstance(model.served.model.layers[0].self_attn.o_proj, Identity)
    assert adds_itself == (name != "gemma3")  # whose layers have a form of their own
    expected = own_logits(model.loaded, model.facts, BACKEND)
    prove_stand_ins(expected, model.served, model.facts, model.geometry, BACKEND)


def test_projections_side_by_side_are_one_product(
    family: Callable[[str], Path],
) -> None:
    """
    Queries, keys and values whose weights lie in a row are computed together.
    """
    model = Model(family("llama"), "bfloat16")
    attention = model.served.model.layers[0].self_attn
    weights = [attention.q_proj, attention.k_proj, attention.v_proj]
    together = torch.cat([each.weight for each in weights])
    parts = together.split([len(each.weight) for each in weights])
    for each, part in zip(weights, parts, strict=True):
        each.weight = torch.nn.Parameter(part, requires_grad=False)
    x = torch.randn(1, 3, together.shape[1]).bfloat16().to(DEVICE)
    expected = [each(x) for each in weights]

    speed_up(model.served)
    joined = [attention.q_proj, attention.k_proj, attention.v_proj]

    assert all(isinstance(each, Part) for each in joined)
    for each, answer in zip(joined, expected, strict=True):
        assert torch.allclose(each(x), answer, rtol=1e-2, atol=1e-2)


def test_steps_of_few_rows_answer_as_the_modules(
    family: Callable[[str], Path],
) -> None:
    """
    Every product of a step of three tokens goes through the kernel chosen at start.
    """
    model = Model(family("llama"), "bfloat16")
    tokens = torch.tensor([[5, 9, 3]], device=DEVICE)

    speed_up(model.served)
    products = products_of(model.served)
    with torch.inference_mode():
        space = workspace(products, [132], torch.device(DEVICE))
        choose_kernels(products, space, 132)
    chunk = Chunk(tokens[0].tolist(), 0, [0], GREEDY, 0)
    attention_of = BACKEND.over_scratch(1, model.geometry)
    batch = pack([chunk], 16)
    forward = Forward(model.served, torch.device(DEVICE))
    found = forward(batch, attention_of(batch), torch.arange(3))

    kinds = {type(each) for each in products}
    assert kinds == {Product, Sum}
    assert isinstance(model.served.lm_head, Product)
    with torch.inference_mode():
        expected = model.loaded(input_ids=tokens, use_cache=False).logits[0]
    assert float((found - expected).norm() / expected.norm()) < 0.05


def test_weights_apart_are_not_joined() -> None:
    """
    Only what lies one right after the other can be read as one.
    """
    whole = torch.zeros(10, 4)

    assert spanning([whole[:3], whole[3:7]]) is not None
    assert spanning([whole[:3], whole[4:7]]) is None
    assert spanning([torch.zeros(3, 4), torch.zeros(3, 4)]) is None


def test_a_graph_keeps_what_its_kernels_write_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """
    Whoever captured it forgets the attention; what that counts in must not be given away.
    """
    stream = SimpleNamespace(synchronize=lambda: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", lambda *_, **__: nullcontext())
    forward: Any = SimpleNamespace(run=lambda *_: torch.zeros(4, 8))
    rows: Any = Rows(4, table_width=2, block_size=16, device=torch.device("cpu"))
    attention = rows.attention(None, num_sms=8)
    kept = ref(attention)

    graph = Graph(forward, attention, rows, None)
    del attention

    assert kept() is not None
    del graph
    assert kept() is None


def test_padding_rows_write_nothing(family: Callable[[str], Path]) -> None:
    """
    A step for four sequences that has two leaves every other slot as it was.
    """
    model = Model(family("llama"), "float32")
    blocks = DeviceBlocks.scratch(4, model.geometry, torch.device(DEVICE))
    blocks.memory.fill_(7.0)
    slots, lengths = (
        torch.tensor(v, device=DEVICE) for v in ([5, 20, -1, -1], [6, 5, 0, 0])
    )
    tables = torch.zeros((4, 2), dtype=torch.int32, device=DEVICE)
    tables[1, 0] = 1
    attention = DecodeAttention(blocks, slots.int(), tables, lengths.int(), num_sms=8)
    tokens = torch.ones((1, 4), dtype=torch.int32, device=DEVICE)

    with torch.inference_mode():
        Forward(model.served, torch.device(DEVICE)).run(
            tokens, tokens, attention, torch.arange(4, device=DEVICE)
        )

    layer = model.geometry.layers[0]
    k = blocks.memory[:, : layer.num_kv_heads * 16 * layer.k_head_dim]
    written = (k.view(4, layer.num_kv_heads, 16, -1) != 7.0).any(-1).any(1).nonzero()
    assert written.tolist() == [[0, 5], [1, 4]]


def test_padding_beside_a_prompt_changes_nothing(
    family: Callable[[str], Path],
) -> None:
    """
    The inputs of a captured step, larger than what is asked, give the logits and the blocks
    of a step of that size, and write nowhere else.
    """
    model = Model(family("llama"), "float32")
    chunks = [Chunk([5], 3, [4], GREEDY, 0), Chunk([7, 8, 9], 0, [2], GREEDY, 0)]
    sizes = Sizes(max_num_seqs=4, table_width=4, tile=16, num_sms=8)
    packed = Packed(16, sizes, block_size=16, device=torch.device(DEVICE))
    exact = StepInputs.upload(pack(chunks, 16), torch.device(DEVICE))
    forward = Forward(model.served, torch.device(DEVICE))

    packed.take(chunks)
    answers, memories = [], []
    for inputs in (exact, packed.inputs):
        blocks = DeviceBlocks.scratch(5, model.geometry, torch.device(DEVICE))
        blocks.memory.fill_(0.5)
        attention = CudaAttention(blocks, inputs)
        ids, positions = inputs.token_ids[None], inputs.positions[None]
        with torch.inference_mode():
            answers.append(forward.run(ids, positions, attention, inputs.rows)[:2])
        memories.append(blocks.memory)

    torch.testing.assert_close(*answers, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(*memories, atol=1e-5, rtol=1e-5)


def test_a_batch_arrives_whole() -> None:
    """
    Every index array of a step is on the device with its shape and numbers.
    """
    chunks = [Chunk([5, 6, 7], 0, [3], GREEDY, 0), Chunk([9], 4, [1, 2], GREEDY, None)]
    batch = pack(chunks, 4, tile_tokens=2)

    inputs = StepInputs.upload(batch, torch.device(DEVICE))

    assert inputs.token_ids.tolist() == [5, 6, 7, 9]
    assert inputs.positions.tolist() == [0, 1, 2, 4]
    assert inputs.slot_mapping.tolist() == [12, 13, 14, 8]
    assert inputs.rows.tolist() == [2]
    assert inputs.tiles.tolist() == [[0, 0, 2, 0], [0, 2, 1, 2], [1, 3, 1, 4]]
    assert inputs.block_tables.tolist() == [[3, 0], [1, 2]]


def test_a_gpu_s_blocks_are_laid_out_in_rows() -> None:
    """
    On a GPU a head's keys are plain rows, and odd head sizes are not rounded up.
    """
    layer = LayerGeometry(num_kv_heads=2, k_head_dim=5, v_head_dim=3)
    geometry = KVGeometry(
        layers=(layer, layer), dtype="bfloat16", block_size=4, device="cuda"
    )

    blocks = DeviceBlocks.scratch(3, geometry, torch.device(DEVICE))

    assert geometry.block_bytes == 2 * 2 * 2 * 4 * (5 + 3)
    assert [each.k_offset for each in blocks.layers] == [0, 64]
    assert [each.v_offset for each in blocks.layers] == [40, 104]
