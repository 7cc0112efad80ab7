"""Processes that are forks of one that has imported everything."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from waiting import wait_until

from mesh.errors import Unreachable
from mesh.sprout import Sprout, sprout, stem_socket

STEM = """
import socket, sys
from mesh.stem import serve
serve(socket.socket(fileno=int(sys.argv[1])))
"""

TELLS = """
import os, sys
print(sys.argv[1:], sys.orig_argv, sorted(n for n in os.environ if "TANDEM" in n))
print(open("/proc/self/cmdline").read().split(chr(0))[:2], os.getsid(0) == os.getpid())
print(len(os.listdir("/proc/self/fd")), __name__)  # with that of the listing
sys.exit(int(os.environ["TANDEM_CODE"]))
"""


@contextmanager
def stem(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """One that has imported nothing, and finds modules in the folder."""
    with (
        stem_socket(folder / "stem.sock") as listener,
        running(folder, listener.fileno()) as process,
    ):
        yield process


@contextmanager
def running(folder: Path, descriptor: int) -> Iterator[subprocess.Popen[bytes]]:
    path = os.pathsep.join([str(folder), *filter(None, sys.path)])
    with subprocess.Popen(
        [sys.executable, "-c", STEM, str(descriptor)],
        env={**os.environ, "PYTHONPATH": path},
        pass_fds=(descriptor,),
    ) as process:
        try:
            yield process
        finally:
            process.kill()


async def start(folder: Path, code: str, *arguments: str, **settings: str) -> Sprout:
    (folder / "wanted.py").write_text(code)
    argv = ("python", "-m", "wanted", *arguments)
    with (folder / "said").open("ab") as said:
        return await sprout(
            folder / "stem.sock", argv, settings, (said.fileno(), said.fileno())
        )


FOREVER = "import time; time.sleep(600)"


async def test_a_fork_is_as_if_it_had_been_started(tmp_path: Path) -> None:
    """
    Its arguments, settings, outputs, session and exit code are its own, and nothing of
    the stem is open in it.
    """
    with stem(tmp_path):
        process = await start(tmp_path, TELLS, "a", "b", TANDEM_CODE="7", HOME="/no")
        code = await process.wait()

    argv = ["python", "-m", "wanted", "a", "b"]
    assert code == 7
    assert (tmp_path / "said").read_text().splitlines() == [
        f"{argv[3:]} {argv} ['TANDEM_CODE']",
        f"{argv[:2]} True",
        "4 __main__",
    ]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_killed_fork_is_told(number: signal.Signals, tmp_path: Path) -> None:
    """
    As minus the signal, and its process is gone by then.
    """
    with stem(tmp_path):
        process = await start(tmp_path, FOREVER)
        other = await start(tmp_path, FOREVER)
        os.kill(process.pid, number)
        code = await process.wait()
        is_other_there = psutil.pid_exists(other.pid)

    assert code == -number
    assert not psutil.pid_exists(process.pid)
    assert is_other_there
    assert await other.wait() == -signal.SIGKILL  # with its stem


async def test_who_asked_is_gone_and_so_is_the_fork(tmp_path: Path) -> None:
    """
    It ends with the process that asked for it, however that ends.
    """
    asks = f"""
import asyncio, sys
from pathlib import Path
from mesh.errors import Unreachable
from mesh.sprout import sprout
argv = ("python", "-m", "wanted")
(Path({str(tmp_path)!r}) / "wanted.py").write_text({FOREVER!r})
async def main():
    process = await sprout(Path({str(tmp_path / "stem.sock")!r}), argv, {{}}, (1, 2))
    print(process.pid, flush=True)
    await process.wait()
asyncio.run(main())
"""
    with stem(tmp_path):
        who = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", asks), stdout=asyncio.subprocess.PIPE
        )
        assert who.stdout
        pid = int(await who.stdout.readline())
        who.kill()
        await who.wait()

        await wait_until(lambda: not psutil.pid_exists(pid))


async def test_a_stem_that_dies_takes_its_forks_with_it(tmp_path: Path) -> None:
    """
    Who asked hears of it, and may ask before there is another stem.
    """
    with stem_socket(tmp_path / "stem.sock") as listener:
        with running(tmp_path, listener.fileno()) as first:
            process = await start(tmp_path, FOREVER)
            first.kill()
            code = await process.wait()
        with running(tmp_path, listener.fileno()):
            again = await start(tmp_path, "")

            assert await again.wait() == 0
    assert code == -signal.SIGKILL
    await wait_until(lambda: not psutil.pid_exists(process.pid))


async def test_a_stem_that_stays_silent_is_not_waited_for_forever(
    tmp_path: Path,
) -> None:
    """
    Where one listens and nobody answers, who asks is told so when its time is over.
    """
    path = tmp_path / "stem.sock"
    with stem_socket(path), pytest.raises(Unreachable, match="no stem answered"):
        await sprout(path, ("python", "-m", "this"), {}, (1, 2), seconds=0.05)


async def test_nobody_stands_in_a_full_line_for_a_stem(tmp_path: Path) -> None:
    """
    Where as many ask a silent one as may, who comes next hears so and is not held up:
    nothing else of its process would go on.
    """
    path = tmp_path / "stem.sock"
    kind = socket.AF_UNIX, socket.SOCK_SEQPACKET
    with socket.socket(*kind) as listener, socket.socket(*kind) as first:
        listener.bind(str(path))
        listener.listen(0)
        first.connect(str(path))

        async with asyncio.timeout(10):
            with pytest.raises(Unreachable, match="no stem answered"):
                await sprout(path, ("python", "-m", "this"), {}, (1, 2), seconds=60)
