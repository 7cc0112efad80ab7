"""What the loader accepts, what it refuses and why, and how it lays out the weights."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from engine.checkpoint import Checkpoint
from engine.errors import BrokenCheckpoint, UnsupportedModel
from engine.fingerprint import fingerprint
from engine.skeleton import state, views
from protocol.memory import ALIGNMENT_BYTES

Fixture = Callable[..., Any]


def read(path: Path) -> Checkpoint:
    return Checkpoint.read(path, "float32", block_size=16)


def save_config(path: Path, class_name: str, **changes: object) -> Path:
    getattr(transformers, class_name)(**changes).save_pretrained(path)
    return path


def test_facts_of_the_real_model(stories: Path, memory_of: Fixture) -> None:
    """The mesh learns the vocabulary, the reach and the shape of K and V."""
    checkpoint = memory_of(stories).checkpoint

    assert checkpoint.facts.vocab_size == 512
    assert checkpoint.facts.max_position == 512
    assert checkpoint.facts.fingerprint == fingerprint(stories, "float32")
    assert len(checkpoint.geometry.layers) == 5
    assert checkpoint.geometry.layers[0].num_kv_heads == 4


def test_geometry_is_what_attention_sees(family: Fixture, memory_of: Fixture) -> None:
    """DeepSeek's K and V have other dims than its configuration's head_dim."""
    geometry = memory_of(family("deepseek-v3")).checkpoint.geometry

    assert {layer.k_head_dim for layer in geometry.layers} == {12}
    assert {layer.v_head_dim for layer in geometry.layers} == {12}
    assert {layer.num_kv_heads for layer in geometry.layers} == {4}


def test_memory_holds_every_tensor(each_family: Path, memory_of: Fixture) -> None:
    """Every parameter and buffer, non-persistent ones too, is in memory and aligned."""
    memory = memory_of(each_family)
    model = transformers.AutoModelForCausalLM.from_pretrained(each_family)
    expected = state(model)

    found = views(memory.weights, memory.checkpoint.tensors)

    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert all(s.offset % ALIGNMENT_BYTES == 0 for s in memory.checkpoint.tensors)


def test_tied_tensors_lie_in_memory_once(family: Fixture, memory_of: Fixture) -> None:
    """Both names of a tied tensor are listed, at the same offset."""
    checkpoint = memory_of(family("llama-tied")).checkpoint

    offsets = {spec.name: spec.offset for spec in checkpoint.tensors}

    assert offsets["lm_head.weight"] == offsets["model.embed_tokens.weight"]


def test_weights_do_not_fit_a_short_buffer(stories: Path, memory_of: Fixture) -> None:
    """A buffer that is too small is refused before anything is written."""
    checkpoint = memory_of(stories).checkpoint
    buffer = bytearray(checkpoint.weights_bytes - 1)

    with pytest.raises(ValueError, match="of weights"):
        checkpoint.copy_into(memoryview(buffer))

    assert not any(buffer)


def test_reach_ends_where_rotary_frequencies_change(
    family: Fixture, memory_of: Fixture
) -> None:
    """A longrope model is served up to the length where it would switch factors."""
    facts = memory_of(family("phi3-longrope")).checkpoint.facts

    assert facts.max_position == 128


def test_fingerprint_tells_models_and_dtypes_apart(
    stories: Path, family: Fixture
) -> None:
    """The same files and dtype agree; another configuration or dtype does not."""
    digests = {
        fingerprint(stories, "float32"),
        fingerprint(stories, "bfloat16"),
        fingerprint(family("llama"), "float32"),
    }

    assert len(digests) == 3
    assert fingerprint(stories, "float32") in digests


def test_fingerprint_needs_no_torch() -> None:
    """A worker may compare fingerprints before it spends seconds on importing torch."""
    code = "import sys, engine.fingerprint; sys.exit('torch' in sys.modules)"
    libs = Path(__file__).parents[2] / "libs"

    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(libs)})

    assert done.returncode == 0


@pytest.mark.parametrize(
    ("class_name", "changes", "reason"),
    [
        ("T5Config", {}, "an encoder with a decoder"),
        ("LlavaConfig", {}, "'llava' is not a causal language model"),
        ("MambaConfig", {}, "layers of the type linear_attention"),
        ("Qwen3NextConfig", {}, "layers of the type linear_attention"),
        ("Llama4TextConfig", {}, "layers of the type chunked_attention"),
    ],
)
def test_configuration_is_refused(
    tmp_path: Path, class_name: str, changes: dict[str, object], reason: str
) -> None:
    """Other kinds of models are refused before their weights are loaded."""
    path = save_config(tmp_path, class_name, **changes)

    with pytest.raises(UnsupportedModel) as refused:
        read(path)

    assert reason in refused.value.reason


@pytest.mark.parametrize(
    ("class_name", "changes", "reason"),
    [
        ("BertGenerationConfig", {}, "attends to later tokens"),
        ("BloomConfig", {"n_head": 4}, "0 of its 3 layers use attention"),
        ("FalconConfig", {}, "cannot be built with our attention"),
        (
            "GptOssConfig",
            {"head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1},
            "its attention uses 's_aux'",
        ),
        ("StableLmConfig", {}, "does not pass keyword arguments"),
        ("LlamaConfig", {"max_position_embeddings": 20}, "reads only 20 tokens"),
    ],
)
def test_model_is_refused(
    make_model: Fixture, class_name: str, changes: dict[str, object], reason: str
) -> None:
    """Models whose attention we cannot compute are refused, with the reason."""
    path = make_model(class_name, **changes)

    with pytest.raises(UnsupportedModel) as refused:
        read(path)

    assert reason in refused.value.reason


def test_directory_without_a_model(tmp_path: Path) -> None:
    """A wrong path says that it is one."""
    with pytest.raises(BrokenCheckpoint, match=r"no config\.json"):
        read(tmp_path)


def test_configuration_that_is_not_json(tmp_path: Path) -> None:
    """A broken configuration is named."""
    (tmp_path / "config.json").write_text("{")

    with pytest.raises(BrokenCheckpoint, match="cannot understand"):
        read(tmp_path)


def test_missing_weights(tmp_path: Path) -> None:
    """A configuration without weights is not a model."""
    save_config(tmp_path, "LlamaConfig")

    with pytest.raises(BrokenCheckpoint, match="cannot load the weights"):
        read(tmp_path)


def test_truncated_weights(make_model: Fixture) -> None:
    """Half a file of weights is refused."""
    path = make_model("LlamaConfig")
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])

    with pytest.raises(BrokenCheckpoint, match="cannot load the weights"):
        read(path)


def test_weights_that_lack_a_tensor(make_model: Fixture) -> None:
    """What the files lack would be random: one layer more than they hold is refused."""
    path = make_model("LlamaConfig")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 4}))

    with pytest.raises(BrokenCheckpoint, match="missing keys"):
        read(path)


def test_weights_of_another_shape(make_model: Fixture) -> None:
    """Weights that do not fit the configuration are refused."""
    path = make_model("LlamaConfig")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "vocab_size": 97}))

    with pytest.raises(BrokenCheckpoint, match="cannot load the weights"):
        read(path)
