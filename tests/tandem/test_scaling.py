"""More workers or fewer while a mesh runs, with Python one-liners as workers."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from waiting import wait_until

from mesh.errors import ConfigurationError
from tandem.scaling import Fleet, Wanted, ask, listening_for_scale, parsed
from tandem.supervisor import Command, supervised

NOTES_ITSELF = """
import pathlib, signal, sys, time
note = pathlib.Path(sys.argv[1])
note.touch()
def end(*_):
    note.unlink()
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
time.sleep(600)
"""


@asynccontextmanager
async def fleet_in(
    folder: Path, services: tuple[str, ...] = ("prefill", "decode")
) -> AsyncIterator[Fleet]:
    """One worker of each kind; a file in `running` for each that runs."""
    running = folder / "running"
    running.mkdir()

    def command_of(service: str, number: int) -> Command:
        name = f"{service}-{number}"
        argv = (sys.executable, "-S", "-c", NOTES_ITSELF, str(running / name))
        return Command(name, argv, dict(os.environ))

    async with supervised(folder, print) as supervisor:
        fleet = Fleet(supervisor, command_of, dict.fromkeys(services, 1))
        async with listening_for_scale(folder, fleet):
            everyone = {f"{service}-0" for service in services}
            await wait_until(lambda: names(folder) == everyone)
            yield fleet


def names(folder: Path) -> set[str]:
    return set(os.listdir(folder / "running"))


async def asked(folder: Path, *words: str) -> dict[str, int]:
    return await asyncio.to_thread(ask, folder, parsed(list(words)))


async def test_more_workers_are_started(tmp_path: Path) -> None:
    """
    What is missing starts; the other kind is left alone.
    """
    async with fleet_in(tmp_path):
        counts = await asked(tmp_path, "decode=3")

        assert counts == {"prefill": 1, "decode": 3}
        everyone = {"prefill-0", "decode-0", "decode-1", "decode-2"}
        await wait_until(lambda: names(tmp_path) == everyone)


async def test_the_newest_are_stopped_and_stay_away(tmp_path: Path) -> None:
    """
    When fewer are wanted the newest are told to stop, have ended with the answer, and
    are not started again.
    """
    async with fleet_in(tmp_path):
        await asked(tmp_path, "decode=3", "prefill=2")
        await wait_until(lambda: len(names(tmp_path)) == 5)

        counts = await asked(tmp_path, "decode=1", "prefill=1")

        assert counts == {"prefill": 1, "decode": 1}
        assert names(tmp_path) == {"prefill-0", "decode-0"}


@pytest.mark.parametrize(
    "words", [["decode"], ["decode=none"], ["decode=0"], ["gateway=2"], ["decode=65"]]
)
def test_a_wish_that_is_none(words: list[str]) -> None:
    """
    A wrong wish is said before anybody is asked.
    """
    with pytest.raises(ConfigurationError, match="say it like decode=3"):
        parsed(words)


def test_nobody_there_to_ask(tmp_path: Path) -> None:
    """
    Without a mesh in that directory the person hears so.
    """
    with pytest.raises(ConfigurationError, match="cannot be scaled"):
        ask(tmp_path, Wanted(decode=2))


async def test_a_fused_mesh_has_no_prefill_workers(tmp_path: Path) -> None:
    """
    Who asks for some hears so, and what was asked beside it is not done either.
    """
    async with fleet_in(tmp_path, ("decode",)) as fleet:
        with pytest.raises(ConfigurationError, match="has decode workers, no prefill"):
            await asked(tmp_path, "prefill=2", "decode=2")

        assert fleet.counts == {"decode": 1}
        assert await asked(tmp_path, "decode=2") == {"decode": 2}


async def test_a_line_that_is_no_wish_is_answered(tmp_path: Path) -> None:
    """
    Whatever is written to the socket, the mesh says what is wrong and goes on.
    """
    async with fleet_in(tmp_path) as fleet:
        reader, writer = await asyncio.open_unix_connection(tmp_path / "up.sock")
        writer.write(b"nonsense\n")

        reply = await reader.readline()

        assert b"error" in reply
        assert fleet.counts == {"prefill": 1, "decode": 1}
        writer.close()
