"""Child processes that are kept alive, with Python one-liners as services."""

import asyncio
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from waiting import wait_until

from mesh.errors import ConfigurationError
from mesh.sprout import sprout, stem_socket
from tandem.rundir import is_alive
from tandem.supervisor import Command, supervised

NOTE_PID = "import os, time; open({file!r}, 'a').write(f'{{os.getpid()}}\\n')\n"
FOREVER = "time.sleep(600)\n"

DEAF = """
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
"""

WITH_CHILD = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(600)'])
open({file!r}, 'a').write(f'{{child.pid}}\\n')
"""

NOTES_ITS_END = """
import signal, sys, time
def end(*_):
    open({file!r}, 'a').write({name!r} + '\\n')
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
open({file!r} + '.' + {name!r}, 'w').close()
"""

ALONE = """
import asyncio, os, sys
from pathlib import Path
from tandem.supervisor import Command, supervised

async def main():
    async with supervised(Path(sys.argv[1]), print) as supervisor:
        supervisor.keep(Command("one", (sys.executable, "-c", sys.argv[2]), os.environ))
        await asyncio.Event().wait()

asyncio.run(main())
"""


def command(name: str, code: str, layer: int = 0) -> Command:
    return Command(name, (sys.executable, "-S", "-c", code), dict(os.environ), layer)


def service(file: Path) -> str:
    """A service that notes its pid and serves for ever."""
    return NOTE_PID.format(file=str(file)) + FOREVER


def pids(file: Path) -> list[int]:
    """Of all processes that noted themselves so far."""
    return [int(line) for line in file.read_text().split()] if file.exists() else []


async def test_a_silent_stem_is_as_a_process_that_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A service that nobody forks is tried again, and its log says what was waited for.
    """
    monkeypatch.setattr("tandem.supervisor.sprout", partial(sprout, seconds=0.02))
    stem, news = tmp_path / "stem.sock", list[str]()
    argv = (sys.executable, "-m", "this")

    with stem_socket(stem):
        async with supervised(tmp_path, news.append) as supervisor:
            supervisor.is_loading = False
            supervisor.keep(Command("one", argv, {}, stem=stem))
            await wait_until(lambda: news[1:])

    assert set(news) == {"one ended with exit code 1; starting it again"}
    assert f"no stem answered at {stem}" in (tmp_path / "one.log").read_text()


async def test_a_process_that_dies_is_started_again(tmp_path: Path) -> None:
    """
    A killed service runs again soon, and a person hears of it.
    """
    noted, news = tmp_path / "pids", list[str]()

    async with supervised(tmp_path, news.append) as supervisor:
        supervisor.keep(command("one", service(noted)))
        (first,) = await wait_until(lambda: pids(noted))
        os.kill(first, signal.SIGKILL)
        _, second = await wait_until(lambda: pids(noted)[1:] and pids(noted))

    assert news == ["one was killed by SIGKILL; starting it again"]
    assert not is_alive(second)


async def test_a_wrong_configuration_stops_everything(tmp_path: Path) -> None:
    """
    While loading, exit code 2 is final: its last line is the reason, the others end.
    """
    noted = tmp_path / "pids"
    wrong = "import sys; print('noise'); sys.exit(print('a: no', file=sys.stderr) or 2)"

    with pytest.RaisesGroup(pytest.RaisesExc(ConfigurationError, match="^a: no$")):
        async with supervised(tmp_path, print) as supervisor:
            supervisor.keep(command("fine", service(noted)))
            (fine,) = await wait_until(lambda: pids(noted))
            supervisor.keep(command("wrong", wrong))
            await asyncio.Event().wait()

    assert not is_alive(fine)


async def test_what_never_starts_is_given_up(tmp_path: Path) -> None:
    """
    While loading, a service that dies again and again stops everything.
    """
    news = list[str]()

    with pytest.RaisesGroup(
        pytest.RaisesExc(ConfigurationError, match="^one does not start: ouch$")
    ):
        async with supervised(tmp_path, news.append) as supervisor:
            supervisor.keep(command("one", "raise SystemExit('ouch')"))
            await asyncio.Event().wait()

    assert set(news) == {"one ended with exit code 1; starting it again"}


async def test_once_loaded_nothing_is_final(tmp_path: Path) -> None:
    """
    After loading, exit code 2 is a death like any other: the settings did work.
    """
    noted = tmp_path / "pids"
    code = NOTE_PID.format(file=str(noted)) + "raise SystemExit(2)"

    async with supervised(tmp_path, print) as supervisor:
        supervisor.is_loading = False
        supervisor.keep(command("one", code))
        await wait_until(lambda: len(pids(noted)) >= 3)

    assert not any(map(is_alive, pids(noted)))


async def test_a_deaf_process_is_killed_in_time(tmp_path: Path) -> None:
    """
    Stopping takes less than five seconds whatever the services do.
    """
    noted = tmp_path / "pids"

    async with supervised(tmp_path, print) as supervisor:
        for layer in range(3):
            supervisor.keep(command(f"deaf-{layer}", DEAF + service(noted), layer))
        await wait_until(lambda: len(pids(noted)) == 3)
        started = time.monotonic()

    assert time.monotonic() - started < 5
    assert not any(map(is_alive, pids(noted)))


async def test_what_a_service_started_goes_with_it(tmp_path: Path) -> None:
    """
    When a service is killed, the processes that it started are gone, too.
    """
    noted, grandchild = tmp_path / "pids", tmp_path / "grandchild"
    code = WITH_CHILD.format(file=str(grandchild)) + service(noted)

    async with supervised(tmp_path, print) as supervisor:
        supervisor.keep(command("one", code))
        (first,) = await wait_until(lambda: pids(noted))
        (orphan,) = pids(grandchild)
        os.kill(first, signal.SIGKILL)

        await wait_until(lambda: not is_alive(orphan))


async def test_higher_layers_stop_first(tmp_path: Path) -> None:
    """
    Whoever is served stops before whoever serves it.
    """
    file = tmp_path / "ends"

    def noting(name: str, layer: int) -> Command:
        code = NOTES_ITS_END.format(file=str(file), name=name)
        return command(name, code + FOREVER, layer)

    async with supervised(tmp_path, print) as supervisor:
        for layer, name in enumerate(["base", "middle", "top"]):
            supervisor.keep(noting(name, layer))
            await wait_until((tmp_path / f"ends.{name}").exists)

    assert file.read_text().split() == ["top", "middle", "base"]


async def test_children_die_with_a_killed_supervisor(tmp_path: Path) -> None:
    """
    A supervisor that is killed outright leaves no child behind.
    """
    noted = tmp_path / "pids"
    supervisor = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", ALONE, str(tmp_path), service(noted))
    )

    (child,) = await wait_until(lambda: pids(noted))
    supervisor.kill()
    await supervisor.wait()

    await wait_until(lambda: not is_alive(child))
