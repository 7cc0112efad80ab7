"""A mesh whose pool lies in "a GPU's memory", which here is memfd behind its driver."""

import pytest
from asking import complete
from fake_gpu import path_with_fake
from running import STORIES, running_mesh
from waiting import wait_until

PROMPT = {"prompt": list(range(1, 40)), "max_tokens": 20}


@pytest.fixture(autouse=True)
def _gpu(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """A fake driver for all processes, but where there is to be none."""
    if "without" not in request.node.name:
        monkeypatch.setenv("PYTHONPATH", path_with_fake())


@pytest.mark.parametrize("sharing", ["vmm", "ipc"])
async def test_workers_share_a_gpu_s_memory(
    sharing: str,
) -> None:
    """
    Over either kind of handle workers attach, answer, die and are followed by others.
    """
    options = [
        "--device",
        "cuda",
        "--require-zero-copy",
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
    assert {each["device"] for each in found} == {"cuda"}


def test_a_way_that_does_not_work_is_named_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """
    With `--require-zero-copy` the store tries how it shares before anybody loads.
    """
    monkeypatch.setenv("FAKE_GPU_BYTES", "0")

    with (
        pytest.raises(AssertionError, match=r"trial of .*OUT_OF_MEMORY"),
        running_mesh(
            STORIES, "--device", "cuda", "--require-zero-copy", "--engine", "counting"
        ),
    ):
        pass


def test_a_machine_without_a_gpu_is_named() -> None:
    """
    `--device cuda` where there is no GPU ends with the reason, not with a trace.
    """
    with (
        pytest.raises(AssertionError, match="TANDEM_DEVICE is cuda, but"),
        running_mesh(STORIES, "--device", "cuda", "--engine", "counting"),
    ):
        pass
