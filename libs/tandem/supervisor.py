"""Child processes that are kept alive: start, watch, restart, stop.

Knows no service. Children are started in any order and stopped by layer, the highest
first; each one dies with the supervisor, however that ends.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path

from mesh.errors import ConfigurationError, Unreachable
from mesh.parentage import die_with_parent
from mesh.runtime import EXIT_CONFIGURATION, EXIT_UNREACHABLE
from mesh.sprout import Process, sprout

STOP_SECONDS = 4.0  # for all children together; who then still runs is killed
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 2.0
QUICK_DEATH_SECONDS = 10.0  # who lived longer starts again after the first pause
MAX_DEATHS_WHILE_LOADING = 5

LAST_WORDS_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Command:
    """What to run. A lower layer serves the higher ones and outlives them.

    What has a stem's socket is forked from that stem, and has its environment but for
    settings.
    """

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    layer: int = 0
    pass_fds: Sequence[int] = ()
    stem: Path | None = None


class Child:
    """A command and the process that runs it now."""

    def __init__(self, command: Command, log: Path) -> None:
        self.command = command
        self._log = log
        self._process: Process | None = None
        log.write_bytes(b"")

    async def run(self) -> int:
        """Start a process and wait for its end: an exit code, or minus a signal."""
        with self._log.open("ab") as log:
            try:
                self._process = process = await _start(self.command, log.fileno())
            except Unreachable as error:
                log.write(f"{error}\n".encode())
                return EXIT_UNREACHABLE
        code = await process.wait()
        _kill_group(process.pid)
        return code

    async def stop(self, seconds: float) -> None:
        """Ask it to end, wait that long, then end it with all that it started."""
        if self._process is None:
            return
        with suppress(ProcessLookupError):
            self._process.terminate()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), seconds)
        _kill_group(self._process.pid)
        await self._process.wait()

    def last_words(self) -> str:
        """The last line of its log."""
        lines = self._log.read_bytes()[-LAST_WORDS_BYTES:].decode(errors="replace")
        return next(filter(None, map(str.strip, reversed(lines.splitlines()))), "")


class Supervisor:
    """Keeps commands running.

    While the whole is loading, a child that exits with the code for a wrong
    configuration, or dies again and again, is a ConfigurationError for everyone.
    """

    def __init__(
        self, tasks: asyncio.TaskGroup, logs: Path, tell: Callable[[str], None]
    ) -> None:
        self._tasks = tasks
        self._logs = logs
        self._tell = tell
        self._watches: dict[str, asyncio.Task[None]] = {}
        self._children: dict[str, Child] = {}
        self.is_loading = True

    def keep(self, command: Command) -> None:
        """Run this command from now on, again whenever it ends."""
        child = Child(command, self._logs / f"{command.name}.log")
        self._children[command.name] = child
        self._watches[command.name] = self._tasks.create_task(
            self._watch(child), name=f"watch {command.name}"
        )

    async def let_go(self, name: str) -> None:
        """Stop this child, and start it no more."""
        self._watches.pop(name).cancel()
        await self._children[name].stop(STOP_SECONDS)
        del self._children[name]

    async def _watch(self, child: Child) -> None:
        clock = asyncio.get_running_loop().time
        pause, deaths = FIRST_PAUSE_SECONDS, 0
        while True:
            born = clock()
            code = await child.run()
            deaths += 1
            self._judge(child, code, deaths)
            if clock() - born > QUICK_DEATH_SECONDS:
                pause = FIRST_PAUSE_SECONDS
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def _judge(self, child: Child, code: int, deaths: int) -> None:
        name = child.command.name
        if self.is_loading and code == EXIT_CONFIGURATION:
            raise ConfigurationError(child.last_words() or f"{name}: {_in_words(code)}")
        if self.is_loading and deaths >= MAX_DEATHS_WHILE_LOADING:
            raise ConfigurationError(
                f"{name} does not start: {child.last_words() or _in_words(code)}"
            )
        self._tell(f"{name} {_in_words(code)}; starting it again")

    def unwatch(self) -> None:
        """Let children end from now on."""
        for watch in self._watches.values():
            watch.cancel()

    async def stop(self) -> None:
        """Stop all children, layer by layer from the top."""
        seconds = STOP_SECONDS
        by_layer = sorted(self._children.values(), key=_layer, reverse=True)
        for _, layer in groupby(by_layer, key=_layer):
            seconds /= 2  # what is left after it is for the layers below
            async with asyncio.TaskGroup() as tasks:
                for child in layer:
                    tasks.create_task(
                        child.stop(seconds), name=f"stop {child.command.name}"
                    )


@asynccontextmanager
async def supervised(
    logs: Path, tell: Callable[[str], None]
) -> AsyncIterator[Supervisor]:
    """A supervisor for this block; on every way out of it all children are gone.

    `tell` hears of each death that a restart mends.
    """
    async with asyncio.TaskGroup() as tasks:
        supervisor = Supervisor(tasks, logs, tell)
        try:
            yield supervisor
        finally:
            supervisor.unwatch()
            await supervisor.stop()


def _layer(child: Child) -> int:
    return child.command.layer


async def _start(command: Command, log: int) -> Process:
    """In a session of its own: signals typed at a terminal reach the supervisor alone."""
    if command.stem:
        return await sprout(command.stem, command.argv, command.env, (log, log))
    return await asyncio.create_subprocess_exec(
        *command.argv,
        env=command.env,
        pass_fds=command.pass_fds,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
        preexec_fn=partial(die_with_parent, os.getpid()),
    )


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _in_words(code: int) -> str:
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
