"""From what a person calls a model to a directory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mesh.errors import ConfigurationError
from tandem.models import find, name_of

FIND = "import sys; from tandem.models import find; print(find(sys.argv[1]))"
NOWHERE = "http://127.0.0.1:9"  # the discard port: nobody listens


def find_with_hub(model: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`find` in a process of its own: the hub's client reads its settings at import."""
    return subprocess.run(
        [sys.executable, "-c", FIND, model],
        env={**os.environ, "HF_ENDPOINT": NOWHERE, **environment},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def in_cache(home: Path, *files: str) -> Path:
    """A snapshot of `some/model` in a hub cache, with these files."""
    model = home / "hub" / "models--some--model"
    snapshot = model / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("0" * 40)
    for file in files:
        (snapshot / file).write_text("{}")
    return snapshot


def test_a_directory_is_itself(tmp_path: Path) -> None:
    """
    A directory with a configuration is taken as it is, and gives the model its name.
    """
    model = tmp_path / "llama"
    model.mkdir()
    (model / "config.json").write_text("{}")

    assert find(str(model)) == model
    assert name_of(str(model)) == "llama"


@pytest.mark.parametrize("model", ["/nowhere/at/all", "./nowhere", "nowhere", ""])
def test_a_missing_directory_is_said(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    What can be no hub id must be a directory.
    """
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ConfigurationError, match=r"no model directory|no config\.json"):
        find(model)


def test_a_directory_without_configuration_is_said(tmp_path: Path) -> None:
    """
    A directory that holds no model is a mistake, not a model without settings.
    """
    with pytest.raises(ConfigurationError, match=r"no config\.json"):
        find(str(tmp_path))


def test_a_model_in_the_cache_needs_no_hub(tmp_path: Path) -> None:
    """
    What was downloaded before is served without asking anybody.
    """
    snapshot = in_cache(tmp_path, "config.json", "model.safetensors")

    found = find_with_hub("some/model", HF_HOME=str(tmp_path))

    assert found.stdout.strip() == str(snapshot)


def test_a_broken_off_download_is_no_model(tmp_path: Path) -> None:
    """
    A snapshot without its weights is downloaded again, not served.
    """
    in_cache(tmp_path, "config.json")

    found = find_with_hub("some/model", HF_HOME=str(tmp_path))

    assert "the hub failed" in found.stderr.splitlines()[-1]


def test_a_hub_out_of_reach_is_one_line(tmp_path: Path) -> None:
    """
    Without a hub the person reads where the model was looked for.
    """
    found = find_with_hub("some/model", HF_HOME=str(tmp_path))

    assert found.returncode == 1
    assert (
        "some/model is neither a directory nor in the hub's local cache"
        in found.stderr.splitlines()[-1]
    )
