"""A mesh on a machine where no kernel was ever compiled."""

import asyncio
import fcntl
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest
from asking import Streamed, complete, stream
from reference_model import ReferenceModel
from running import STORIES, RunningMesh, running_mesh
from waiting import wait_until

from engine.compiled import MACHINE_CODE, are_compiled

FUSED = "--served-model-name", "test", "--paradigm", "fused"
PROMPT = [1, *range(3, 40)]
PAUSE_SECONDS = 1.0


@contextmanager
def nobody_compiles(folder: Path) -> Iterator[None]:
    """While the block lasts, who would waits."""
    folder.mkdir()
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def compilers(mesh: RunningMesh) -> list[psutil.Process]:
    everyone = psutil.Process(mesh.up.pid).children(recursive=True)
    return [each for each in everyone if "engine.compile" in " ".join(each.cmdline())]


def reasons(mesh: RunningMesh) -> set[str]:
    """What its living workers say to why they have no tapes."""
    living = [p for p in mesh.status()["processes"] if psutil.pid_exists(p["pid"])]
    found = [each["in_force"] for each in living]
    return {each["without_replay"] for each in found if each}


@pytest.mark.skipif(not are_compiled(), reason="python -m engine.compile was not run")
async def test_it_serves_at_once_and_takes_up_kernels_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: ReferenceModel
) -> None:
    """
    Somebody compiles behind each worker, last in line for the cores, and dies with it.
    When that is done, streams go on with kernels, and not a token is another one.
    """
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    folder = tmp_path / MACHINE_CODE.name
    expected = reference.greedy(PROMPT, 300)

    with ExitStack() as stack:
        with nobody_compiles(folder):
            mesh = stack.enter_context(running_mesh(STORIES, *FUSED))
            early = await complete(mesh.url, prompt=PROMPT, max_tokens=300)
            said, waiting = reasons(mesh), compilers(mesh)
            niceness = [each.nice() for each in waiting]
            mesh.kill("decode")
            await wait_until(lambda: not any(each.is_running() for each in waiting))
            compiled_for_it = list(folder.rglob("*.nbc"))
            without = shutil.ignore_patterns("all-*", "lock")  # as if it had been done
            shutil.copytree(MACHINE_CODE, folder, ignore=without, dirs_exist_ok=True)
        streams: list[Streamed] = []

        async def stream_again() -> bool:
            await asyncio.sleep(PAUSE_SECONDS)  # the cores are for who is last in line
            streams.append(await stream(mesh.url, prompt=PROMPT, max_tokens=300))
            return "float32 is computed by transformers' modules" in reasons(mesh)

        await wait_until(stream_again, 90)  # others use the cores too

    assert early["choices"][0]["token_ids"] == expected
    assert said == {"kernels are being compiled"}
    assert niceness == [19]
    assert not compiled_for_it
    assert all(each.token_ids == expected for each in streams)
