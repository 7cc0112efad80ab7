"""`tandem bench` against a mesh, as people call it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from running import RunningMesh

TRACE = '{"timestamp": 0, "input_length": 40, "output_length": 5, "hash_ids": [0]}\n'
SMALL = ["--input", "40", "--output", "9", "--requests", "6", "--vocab-size", "500"]
SMALL += ["--warm-up", "1", "--repeats", "2", "--concurrency", "3"]


def bench(mesh: RunningMesh, *options: str) -> str:
    command = [sys.executable, "-m", "tandem", "bench", "--url", mesh.url]
    return subprocess.run(
        [*command, *SMALL, *options],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout


@pytest.mark.parametrize("load", [[], ["--rate", "50"]], ids=["closed", "poisson"])
def test_every_request_is_measured(mesh: RunningMesh, load: list[str]) -> None:
    """
    Each repeat has all its requests and tokens, and a time for each of them.
    """
    report = json.loads(bench(mesh, "--json", *load))

    assert [run["num_requests"] for run in report["runs"]] == [6, 6]
    assert [run["num_failed"] for run in report["runs"]] == [0, 0]
    assert [run["num_output_tokens"] for run in report["runs"]] == [54, 54]
    assert report["figures"]["TTFT p50, ms"]["median"] > 0
    assert report["figures"]["goodput, requests/s"]["median"] > 0


def test_a_trace_is_replayed(mesh: RunningMesh, tmp_path: Path) -> None:
    """
    As many requests as the trace has, with its lengths.
    """
    trace = tmp_path / "trace.jsonl"
    trace.write_text(4 * TRACE)

    report = json.loads(bench(mesh, "--json", "--trace", str(trace)))

    assert [run["num_prompt_tokens"] for run in report["runs"]] == [160, 160]
    assert [run["num_output_tokens"] for run in report["runs"]] == [20, 20]


def test_people_get_a_table(mesh: RunningMesh) -> None:
    """
    Median and spread of each measure.
    """
    printed = bench(mesh)

    for measure in ("output tokens/s", "TTFT p50", "TPOT p99", "ITL mean"):
        assert measure in printed


def test_a_picture_is_drawn(mesh: RunningMesh, tmp_path: Path) -> None:
    """
    Where people asked for it; answers of one token have no TPOT to show.
    """
    picture = tmp_path / "bench.png"

    bench(mesh, "--repeats", "1", "--output", "1", "--plot", str(picture))

    assert picture.read_bytes().startswith(b"\x89PNG")


def test_nobody_there_is_one_line() -> None:
    """
    A wrong address is exit code 2 and says so.
    """
    command = [sys.executable, "-m", "tandem", "bench", "--url", "http://127.0.0.1:9"]

    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False
    )

    assert ended.returncode == 2
    assert "no answer from http://127.0.0.1:9" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
