"""The comparison on a GPU, run small on the CPU: the same script, the same meshes."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SMALL = ["--device", "cpu", "--dtype", "float32", "--streams", "2", "--rate", "3"]
SMALL += ["--prompt-tokens", "100", "--vocab-size", "500", "--seconds", "1.5"]


def compared(*options: str) -> list[dict[str, object]]:
    model = ROOT / "models" / "stories260K"
    command = [sys.executable, str(ROOT / "bench" / "gpu_mesh.py"), "--json"]
    done = subprocess.run(
        [*command, "--model", str(model), *SMALL, *options],
        capture_output=True,
        text=True,
        check=True,
    )
    return list(json.loads(done.stdout))


def test_each_system_is_measured_under_the_same_load() -> None:
    """
    Streams and prompts are answered by semi-PD and by fused serving alike.
    """
    semi, fused = compared("--systems", "semi", "fused-512")

    for figures in (semi, fused):
        assert figures["error"] == ""
        assert figures["num_prompts"] == 4
        assert 0 < figures["itl_p50"] <= figures["itl_p99"]
        assert figures["ttft_p50"] > 0


def test_a_system_that_fails_leaves_the_others_measured() -> None:
    """
    Why it failed takes the place of its figures.
    """
    broken, works = compared("--systems", "semi-mps", "semi")

    assert "is not on this machine" in str(broken["error"])
    assert works["error"] == ""
