"""The comparison on a GPU, run small on the CPU: the same script, the same meshes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SMALL = ["--device", "cpu", "--dtype", "float32", "--streams", "2", "--rate", "3"]
SMALL += ["--prompt-tokens", "100", "--vocab-size", "500", "--seconds", "1.5"]


@pytest.fixture(scope="module")
def compared() -> dict[str, dict[str, Any]]:
    """Figures by system; the first one cannot start where there is no MPS."""
    model = ROOT / "models" / "stories260K"
    command = [sys.executable, str(ROOT / "bench" / "gpu_mesh.py"), "--json"]
    systems = ["--systems", "semi-mps", "fused-512"]
    done = subprocess.run(
        [*command, "--model", str(model), *SMALL, *systems],
        capture_output=True,
        text=True,
        check=True,
    )
    return {figures["system"]: figures for figures in json.loads(done.stdout)}


def test_streams_and_prompts_are_measured(
    compared: dict[str, dict[str, Any]],
) -> None:
    """
    Streams that go on, and the prompts that arrive among them.
    """
    figures = compared["fused-512"]

    assert figures["error"] == ""
    assert figures["num_prompts"] == 4
    assert 0 < figures["itl_p50"] <= figures["itl_p99"]
    assert figures["ttft_p50"] > 0


def test_a_system_that_fails_leaves_the_others_measured(
    compared: dict[str, dict[str, Any]],
) -> None:
    """
    Why it failed takes the place of its figures.
    """
    broken = compared["semi-mps"]

    assert "is not on this machine" in broken["error"]
