"""What the gateway learns from a model's files."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gateway.model import Model, load_model
from gateway.settings import Settings
from mesh.errors import ConfigurationError

WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # as if it were not installed
from gateway.app import serve
from gateway.model import load_model
from gateway.settings import Settings
model = load_model(Settings(model=sys.argv[1]))
print(model.tokenizer.encode("Once upon a time"))
"""


@pytest.fixture
def directory(stories: Path, tmp_path: Path) -> Path:
    """A copy of the small model's files, without its weights."""
    ignored = shutil.ignore_patterns("*.safetensors")
    return Path(shutil.copytree(stories, tmp_path / "tiny", ignore=ignored))


def loaded(directory: Path, **given: Any) -> Model:
    return load_model(Settings(model=str(directory), **given))


def change(path: Path, **fields: Any) -> None:
    """Replace fields of a JSON file; None removes one."""
    content = {**json.loads(path.read_text()), **fields}
    kept = {name: value for name, value in content.items() if value is not None}
    path.write_text(json.dumps(kept))


def test_end_tokens_come_from_the_generation_config(directory: Path) -> None:
    """generation_config.json counts more than config.json, and may list several."""
    change(directory / "config.json", eos_token_id=9)

    assert loaded(directory).eos_ids == (1, 2)


def test_end_tokens_come_from_the_config_next(directory: Path) -> None:
    """Without a generation config the model's own config names the end token."""
    (directory / "generation_config.json").unlink()
    change(directory / "config.json", eos_token_id=9)

    assert loaded(directory).eos_ids == (9,)


def test_end_tokens_may_be_those_of_the_text_model(directory: Path) -> None:
    """A config may keep its text model's fields in a part of its own."""
    (directory / "generation_config.json").unlink()
    text = {"eos_token_id": [7, 8]}
    change(directory / "config.json", eos_token_id=None, text_config=text)

    assert loaded(directory).eos_ids == (7, 8)


def test_end_token_of_the_tokenizer_is_the_last_resort(directory: Path) -> None:
    """When no config names one, the tokenizer's end token counts."""
    (directory / "generation_config.json").unlink()
    change(directory / "config.json", eos_token_id=None)

    assert loaded(directory).eos_ids == (2,)


def test_sampling_defaults_are_the_models_own(directory: Path) -> None:
    """Defaults come from the generation config, as in vLLM; else they restrict nothing."""
    change(directory / "generation_config.json", temperature=0.6, top_k=20)

    sampling = loaded(directory).sampling

    assert (sampling.temperature, sampling.top_k) == (0.6, 20)
    assert (sampling.top_p, sampling.min_p) == (1.0, 0.0)


def test_the_name_is_the_directorys_unless_given(directory: Path) -> None:
    """A model is called as its directory, or as the settings say."""
    assert loaded(directory).name == "tiny"
    assert loaded(directory, served_model_name="mine").name == "mine"


def test_a_directory_without_tokenizer_still_serves(directory: Path) -> None:
    """Without tokenizer files there is a model, only none that reads text."""
    for path in directory.glob("tokenizer*"):
        path.unlink()

    model = loaded(directory)

    assert model.tokenizer is None
    assert model.detokenizer([1]).push(5) == ""


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", "{"),
        ("config.json", "[]"),
        ("generation_config.json", '{"temperature": -1}'),
        ("tokenizer.json", "{}"),
    ],
)
def test_broken_files_are_one_line(directory: Path, name: str, content: str) -> None:
    """A file that cannot be used is a configuration error of one line."""
    (directory / name).write_text(content)

    with pytest.raises(ConfigurationError, match="TANDEM_MODEL") as error:
        loaded(directory)

    assert "\n" not in str(error.value)


def test_a_missing_model_is_one_line(tmp_path: Path) -> None:
    """A directory without a config is no model."""
    with pytest.raises(ConfigurationError, match=r"config\.json"):
        loaded(tmp_path)


def test_a_missing_template_is_one_line(directory: Path) -> None:
    """A chat template that is not there is named."""
    with pytest.raises(ConfigurationError, match="TANDEM_CHAT_TEMPLATE"):
        loaded(directory, chat_template=str(directory / "none.jinja"))


def test_no_torch_is_needed(directory: Path) -> None:
    """The gateway runs in an image without torch."""
    command = [sys.executable, "-c", WITHOUT_TORCH, str(directory)]

    result = subprocess.run(command, capture_output=True, text=True, check=False)

    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "[1, 403, 407, 261, 378]"
