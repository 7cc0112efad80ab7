"""Shapes of models and devices: known by name, or read from a file."""

import json
from pathlib import Path

import pytest

from bench.simulation.devices import DEVICES, device_of
from bench.simulation.shapes import SHAPES, Shape, shape_of
from mesh.errors import ConfigurationError

DEMO = Path(__file__).parents[3] / "models" / "demo"


def test_a_model_s_directory_tells_its_shape() -> None:
    """
    The demo model's: heads of a size of their own, and one matrix for both ends.
    """
    shape = shape_of(str(DEMO))

    assert shape == Shape(12, 192, 512, 6, 2, 32, 4096, is_tied=True)
    assert shape == shape_of(str(DEMO / "config.json"))
    weights = (DEMO / "model.safetensors").stat().st_size
    assert shape.weights_bytes == pytest.approx(weights, rel=0.01)


def test_what_a_configuration_leaves_out_is_derived(tmp_path: Path) -> None:
    """
    As transformers does: no head dimension is the hidden size by heads, no KV heads are
    as many as heads.
    """
    config = {
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "vocab_size": 1000,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))

    shape = shape_of(str(tmp_path))

    assert (shape.num_kv_heads, shape.head_dim) == (4, 16)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "JSONDecodeError"),
        ("[]", "AttributeError"),
        ('{"num_attention_heads": 4}', "num_hidden_layers"),
        ('{"num_local_experts": 8}', "mixture of experts"),
    ],
)
def test_a_configuration_that_says_too_little_is_refused(
    text: str, reason: str, tmp_path: Path
) -> None:
    """
    With its file and what is wrong.
    """
    (tmp_path / "config.json").write_text(text)

    with pytest.raises(ConfigurationError, match=reason):
        shape_of(str(tmp_path))


def test_an_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    """
    Of models and of devices.
    """
    with pytest.raises(ConfigurationError, match=r"none of .*llama-3-8b"):
        shape_of("llama-9")
    with pytest.raises(ConfigurationError, match=r"none of .*h200"):
        device_of(str(tmp_path / "no.json"))


def test_a_device_is_written_and_read_again(tmp_path: Path) -> None:
    """
    As calibration does; a figure that is missing or wrong is named.
    """
    path = tmp_path / "device.json"
    path.write_text(DEVICES["h100"].model_dump_json())

    assert device_of(str(path)) == DEVICES["h100"] == device_of("h100")
    path.write_text('{"name": "half"}')
    with pytest.raises(ConfigurationError, match="peak_flops"):
        device_of(str(path))


def test_parameters_add_up_to_the_models_names() -> None:
    """
    Counted from the shapes: 8 billion are 8 billion.
    """
    billions = {"llama-3-8b": 8.03, "llama-3-70b": 70.55, "qwen2.5-14b": 14.77}

    for name, count in billions.items():
        assert SHAPES[name].weights_bytes / 2e9 == pytest.approx(count, rel=0.01)
