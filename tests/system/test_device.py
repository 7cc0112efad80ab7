"""A mesh whose pool lies in "a GPU's memory", which here is memfd behind its driver."""

import os
from pathlib import Path

import pytest
from asking import complete
from running import STORIES, running_mesh
from waiting import wait_until

FAKE_CUDA = Path(__file__).parent.parent / "fake_cuda"
PROMPT = {"prompt": list(range(1, 40)), "max_tokens": 20}


@pytest.mark.parametrize("sharing", ["vmm", "ipc"])
async def test_workers_share_a_gpu_s_memory(
    sharing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Over either kind of handle workers attach, answer, die and are followed by others.
    """
    path = os.pathsep.join([str(FAKE_CUDA), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    options = [
        "--device",
        "cuda",
        "--cuda-sharing",
        sharing,
        "--engine",
        "counting",
        "--served-model-name",
        "test",
    ]

    with running_mesh(STORIES, *options) as mesh:
        before = await complete(mesh.url, **PROMPT)
        mesh.kill("decode")
        after = await complete(mesh.url, **PROMPT)
        await wait_until(mesh.is_idle)
        miscounts = mesh.miscounts()
        status = mesh.status()

    assert before["choices"][0]["text"] == after["choices"][0]["text"]
    assert miscounts == ""
    assert status["pools"][0]["sharing"] == sharing
    found = [each["in_force"] for each in status["processes"] if each["in_force"]]
    assert [each["device"] for each in found] == ["cuda", "cuda"]


def test_a_machine_without_a_gpu_is_named() -> None:
    """
    `--device cuda` where there is no GPU ends with the reason, not with a trace.
    """
    with (
        pytest.raises(AssertionError, match="TANDEM_DEVICE is cuda, but"),
        running_mesh(STORIES, "--device", "cuda", "--engine", "counting"),
    ):
        pass
