"""A stem for several meshes: there as long as somebody starts meshes, and no longer."""

import asyncio
import signal
import sys
from contextlib import suppress
from pathlib import Path

import psutil
from waiting import wait_until

from mesh.sprout import Sprout, sprout
from tandem.stem import shared_stem


async def forked(stem: Path, folder: Path, *module: str) -> Sprout:
    argv = [sys.executable, "-m", *module]
    with (folder / "said").open("wb") as said:
        return await sprout(stem, argv, {}, (said.fileno(), said.fileno()))


def runs(process: Sprout) -> bool:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE
    return False


async def test_a_program_that_it_runs_ends_as_it_will(tmp_path: Path) -> None:
    """
    It has imported what workers need by then; its socket is in a folder of its own.
    """
    with shared_stem() as stem:
        process = await forked(stem, tmp_path, "this")
        async with asyncio.timeout(60):
            code = await process.wait()

    assert code == 0
    assert "Zen of Python" in (tmp_path / "said").read_text()
    assert not stem.parent.exists()


async def test_what_still_runs_ends_with_it(tmp_path: Path) -> None:
    """
    An experiment that ends leaves nothing behind.
    """
    with shared_stem() as stem:
        process = await forked(stem, tmp_path, "http.server", "0")
        assert runs(process)

    async with asyncio.timeout(10):
        code = await process.wait()

    assert code == -signal.SIGKILL
    await wait_until(lambda: not runs(process))
