"""Kernels are compiled behind a worker that serves, in a process of their own."""

import asyncio
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import pytest
from waiting import wait_until

from engine.counting import CountingEngine
from engine.interface import Engine
from mesh.sprout import sprout, stem_socket
from protocol.messages import InForce
from worker.kernels import NoKernels, take_up_kernels
from worker.settings import WorkerSettings
from worker.succession import Succession

FOUND = InForce(device="cpu", dtype="bfloat16", replay="tapes")
SETTINGS = WorkerSettings()
DONE = sys.executable, "-c", ""
FAILS = sys.executable, "-c", "raise SystemExit('no room is left')"


class Other(CountingEngine):
    @property
    def computes_on(self) -> str:
        return "something faster"


def succession(heir: Callable[[], tuple[Engine, InForce]]) -> Succession:
    return Succession(CountingEngine(100), heir, heir)


async def test_an_engine_follows_when_they_are_compiled() -> None:
    """
    It is made then, and the answer is what it runs on.
    """
    engine = succession(lambda: (Other(100), FOUND))

    found = await take_up_kernels(engine, SETTINGS, asyncio.Event(), DONE)

    assert found is FOUND
    with engine.turn():
        assert engine.computes_on == "something faster"


async def test_without_a_compiler_the_reason_is_said() -> None:
    """
    In the words that the compiler ended with; nothing is built.
    """
    engine = succession(lambda: pytest.fail("without kernels"))

    with pytest.raises(NoKernels, match="exit 1: no room is left"):
        await take_up_kernels(engine, SETTINGS, asyncio.Event(), FAILS)


async def test_without_a_stem_the_reason_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    The compiler is a fork of it: who is not answered goes on as without a compiler.
    """
    monkeypatch.setattr("worker.errand.sprout", partial(sprout, seconds=0.02))
    settings = WorkerSettings(stem_socket=tmp_path / "stem.sock")
    engine = succession(lambda: pytest.fail("without kernels"))

    with (
        stem_socket(tmp_path / "stem.sock"),
        pytest.raises(NoKernels, match="no stem answered"),
    ):
        await take_up_kernels(engine, settings, asyncio.Event(), DONE)


async def test_where_machine_code_cannot_be_kept_there_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """
    The real compiler does not compile in vain for a minute first.
    """
    monkeypatch.setenv("NUMBA_CACHE_DIR", "/proc/nowhere")
    engine = succession(lambda: pytest.fail("without kernels"))

    with pytest.raises(NoKernels, match="machine code cannot be kept"):
        await take_up_kernels(engine, SETTINGS, asyncio.Event())


async def test_an_engine_that_cannot_be_built_does_not_follow() -> None:
    """
    Whatever the reason is: the first one goes on.
    """

    def heir() -> tuple[Engine, InForce]:
        raise RuntimeError("it answers otherwise")

    engine = succession(heir)

    with pytest.raises(NoKernels, match="RuntimeError: it answers otherwise"):
        await take_up_kernels(engine, SETTINGS, asyncio.Event(), DONE)

    with engine.turn():
        assert engine.computes_on == CountingEngine(100).computes_on


async def test_who_is_told_to_stop_does_not_wait(tmp_path: Path) -> None:
    """
    The compiler is gone at once.
    """
    pid, stopping = tmp_path / "pid", asyncio.Event()
    write = f"import os; open({str(pid)!r}, 'w').write(str(os.getpid()))"
    forever = sys.executable, "-c", f"{write}; import time; time.sleep(60)"
    engine = succession(lambda: pytest.fail("without kernels"))
    waiting = asyncio.create_task(take_up_kernels(engine, SETTINGS, stopping, forever))
    number = await wait_until(lambda: pid.exists() and pid.read_text())

    stopping.set()

    assert await asyncio.wait_for(waiting, 10) is None
    assert not psutil.pid_exists(int(number))
