"""The `tandem` command as a person meets it: one line for each mistake."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tandem.rundir import take

MODEL = str(Path(__file__).parents[2] / "models" / "stories260K")
SOON_SECONDS = 10.0  # three on an idle machine; tests share theirs


def tandem(
    *arguments: str, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("TANDEM_")}
    path = os.pathsep.join(filter(None, map(os.path.abspath, sys.path)))
    return subprocess.run(
        [sys.executable, "-m", "tandem", *arguments],
        env={**kept, "PYTHONPATH": path, **environment},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


WRONG = {
    "an unknown option": (["up", "--modle", MODEL], "No such option: --modle"),
    "an unknown command": (["upp"], "No such command 'upp'"),
    "no command": ([], "Missing command"),
    "a missing model": (["up", "--model", "/no/model"], "no model directory at"),
    "a port that is none": (["up", "--model", MODEL, "--port", "70000"], "'--port'"),
    "no workers": (["up", "--model", MODEL, "--decode", "0"], "'--decode'"),
    "workers of a phase": (
        ["up", "--model", MODEL, "--paradigm", "fused", "--prefill", "2"],
        "fused has no --prefill",
    ),
    "shares of a phase": (
        ["up", "--model", MODEL, "--paradigm", "fused", "--shares", "50"],
        "fused has no --shares",
    ),
    "a disaggregated GPU": (
        ["up", "--model", MODEL, "--paradigm", "disaggregated", "--device", "cuda"],
        "disaggregated needs --device cpu",
    ),
    "an SLO without shares": (
        ["up", "--model", MODEL, "--paradigm", "fused", "--slo-ttft", "0.5"],
        "none follow an SLO",
    ),
    "no number": (["up", "--model", MODEL, "--kv-blocks", "many"], "'--kv-blocks'"),
    "a dtype": (["up", "--model", MODEL, "--dtype", "int4"], "'int4' is not one of"),
    "int8 of float32": (
        ["up", "--model", MODEL, "--quantization", "int8"],
        "--quantization int8 needs --dtype bfloat16",
    ),
    "a Redis URL": (["up", "--model", MODEL, "--redis-url", "here"], "Redis URL"),
    "one share of two": (["shares", "60", "--redis-url", "x"], "say both shares"),
    "a share beyond all": (
        ["shares", "101", "40", "--redis-url", "x"],
        "say both shares, 1 to 100",
    ),
    "no mesh to share": (["shares", "--run-dir", "nowhere"], "no mesh runs in nowhere"),
    "a device nobody knows": (
        ["simulate", "--device", "abacus"],
        "abacus: no file, and none of a100-40g",
    ),
    "weights without room": (
        ["simulate", "--model", "llama-3-70b", "--device", "h100"],
        "h100 has no room beside the weights",
    ),
    "a plan without SLOs": (["simulate", "--plan", "50"], "a plan needs --ttft-slo"),
    "nothing to scale": (["experiment", "scale"], "say --prefill or --decode"),
    "no number of containers": (
        ["experiment", "scale", "--decode", "1,x"],
        "--decode takes numbers from 1 to 64",
    ),
    "a system nobody knows": (
        ["experiment", "paradigms", "--systems", "vllm"],
        "no system 'vllm'; there are fused,",
    ),
    "no mesh to show": (["status", "--run-dir", "nowhere"], "no mesh runs in nowhere"),
    "no mesh to ask": (["chat", "--url", "http://127.0.0.1:9"], "no mesh answers at"),
    "nobody to examine": (["eval-demo", "--url", "http://127.0.0.1:9"], "no answer"),
    "nobody to talk to": (["chat", "--run-dir", "nowhere"], "no mesh runs in nowhere"),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_mistake_is_one_line(mistake: str, tmp_path: Path) -> None:
    """
    What a person got wrong is one line on stderr, exit code 2, and soon.
    """
    arguments, expected = WRONG[mistake]
    started = time.monotonic()

    result = tandem(*arguments, cwd=tmp_path)

    assert time.monotonic() - started < SOON_SECONDS
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("tandem: ")
    assert expected in result.stderr
    assert result.stdout == ""


def test_a_busy_port_is_one_line(tmp_path: Path) -> None:
    """
    The port is tried before anything is started, and nothing is left behind.
    """
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        result = tandem("up", "--model", MODEL, "--port", str(port), cwd=tmp_path)

    assert result.returncode == 2
    assert result.stderr == f"tandem: 127.0.0.1:{port}: Address already in use\n"
    assert [path.name for path in (tmp_path / ".tandem").iterdir()] == ["logs"]


def test_a_second_mesh_in_a_directory_is_one_line(tmp_path: Path) -> None:
    """
    Two meshes never share a directory.
    """
    with take(tmp_path):
        result = tandem("up", "--model", MODEL, "--run-dir", str(tmp_path))

    assert result.returncode == 2
    assert result.stderr == f"tandem: another mesh runs in {tmp_path}\n"


def test_a_misspelt_variable_is_one_line(tmp_path: Path) -> None:
    """
    A TANDEM_ variable that is no setting is named, never ignored.
    """
    result = tandem("up", "--model", MODEL, cwd=tmp_path, TANDEM_PORTT="1")

    assert result.returncode == 2
    assert result.stderr == "tandem: unknown setting: TANDEM_PORTT\n"


def test_a_redis_that_does_not_answer_is_one_line(tmp_path: Path) -> None:
    """
    A given Redis must be there; none is started in its place.
    """
    result = tandem(
        "up", "--model", MODEL, cwd=tmp_path, TANDEM_REDIS_URL="redis://127.0.0.1:9"
    )

    assert result.returncode == 2
    assert result.stderr == "tandem: no Redis answers at its URL\n"


def test_a_docker_engine_that_does_not_answer_is_one_line(tmp_path: Path) -> None:
    """
    Containers are counted by an engine.
    """
    command = ["experiment", "scale", "--decode", "1,2"]

    result = tandem(*command, DOCKER_HOST=f"unix://{tmp_path}/docker.sock")

    assert result.returncode == 2
    assert result.stderr.startswith("tandem: the Docker engine: ")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("command", ["up", "status", "chat", "shares"])
def test_help_tells_what_a_command_does(command: str) -> None:
    """
    Every command is in the list, and explains itself.
    """
    overview, details = tandem("--help"), tandem(command, "--help")

    assert command in overview.stdout
    assert details.returncode == 0
    assert "--run-dir" in details.stdout
