"""The comparison on a GPU, run small on the CPU: the same script, the same meshes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import gpu_mesh

ROOT = Path(__file__).parents[2]
SMALL = ["--device", "cpu", "--dtype", "float32", "--stream-rate", "4", "--rate", "3"]
SMALL += ["--prompt-tokens", "100", "--vocab-size", "500", "--seconds", "1.5"]
SMALL += ["--stream-tokens", "20", "60", "--settle-seconds", "1"]


def logs(folder: Path, mode: str, mps: str) -> Path:
    """Of a worker that says what is in force."""
    sizes = {"None": 132, "0": 68}
    event = {"event": "gpu.shares", "mode": mode, "mps": mps, "sizes": sizes}
    lines = ['{"event": "worker.ready"}', json.dumps(event | {"reason": "no lanes"})]
    (folder / "decode-0.log").write_text("\n".join(lines))
    return folder


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


def test_what_is_in_force_is_told(tmp_path: Path) -> None:
    """
    In a worker's own words: its part of the GPU, and whether MPS is there.
    """
    told = gpu_mesh.in_force("semi-split", logs(tmp_path, "green", "reachable"))

    assert told == "decode-0: green 132/68, MPS reachable"


@pytest.mark.parametrize(
    ("system", "mode", "mps"),
    [
        ("semi-split", "whole", "reachable"),
        ("semi-split", "green", "no daemon"),
        ("semi-mps", "whole", "no daemon"),
        ("semi", "green", "reachable"),
    ],
)
def test_a_system_that_is_not_what_it_is_called_has_no_figures(
    system: str, mode: str, mps: str, tmp_path: Path
) -> None:
    """
    A split that the driver refused, or a daemon that is missing, never passes for one.
    """
    with pytest.raises(RuntimeError, match=f"decode-0: {mode} 132/68, MPS {mps}"):
        gpu_mesh.in_force(system, logs(tmp_path, mode, mps))
