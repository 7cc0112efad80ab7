"""Whether an MPS daemon lets kernels of several processes run here at the same time.

Asks, and starts a daemon only for `own_daemon`. Never touches the GPU's own settings:
compute mode, clocks, MIG and persistence stay as they are.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

from device.driver import DeviceError

CONTROL = "nvidia-cuda-mps-control"
PIPES = "CUDA_MPS_PIPE_DIRECTORY"
LOGS = "CUDA_MPS_LOG_DIRECTORY"
PERCENTAGE = "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"  # read once, when a client starts
DEFAULT_PIPES = "/tmp/nvidia-mps"
QUIT = "quit -t 10"  # seconds that the daemon gives its servers
# Reads until its input ends, which it does when who started it has ended.
_GUARD = 'read -r nothing; echo "$1" | "$0"; rm -rf "$2"'


class NoDaemon(DeviceError):
    """There is no MPS daemon, or none that answers."""


@dataclass(frozen=True, slots=True)
class Mps:
    """What was found where this process would look for a daemon."""

    pipe_directory: Path
    reason: str = ""  # why no daemon is reachable; empty when one is
    percent: str = ""  # of the SMs that this process has at most; empty: all

    @property
    def is_reachable(self) -> bool:
        return not self.reason


def look(
    environment: Mapping[str, str] = os.environ,
    control: str = CONTROL,
    timeout_seconds: float = 2.0,
) -> Mps:
    """Ask the daemon of this environment. Blocks, until the timeout at most.

    A process becomes its client when it first uses CUDA: look before that.
    """
    pipes = Path(environment.get(PIPES, DEFAULT_PIPES))
    try:
        if not (pipes / "control").exists():
            return Mps(pipes, f"no daemon listens in {pipes}")
        _ask("get_server_list", environment, control, timeout_seconds)
    except (NoDaemon, OSError) as error:
        return Mps(pipes, str(error))
    return Mps(pipes, percent=environment.get(PERCENTAGE, ""))


def start_anew(percent: int) -> NoReturn:
    """This program once more, from its start, with so much of the GPU's SMs at most.

    The same process id; what the process held is given back, as at its end.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    environment = {**os.environ, PERCENTAGE: str(percent)}
    os.execve(sys.executable, sys.orig_argv, environment)


@contextmanager
def own_daemon(
    control: str = CONTROL, timeout_seconds: float = 20.0
) -> Iterator[dict[str, str]]:
    """A daemon of our own while inside; yields the environment that makes clients.

    Its clients should have ended before it is left. Should this process be killed inside,
    the daemon quits, too. Raises NoDaemon when it cannot start or does not quit.
    """
    # A short path: a socket's name has at most 107 bytes.
    with TemporaryDirectory(prefix="tandem-mps-", ignore_cleanup_errors=True) as folder:
        added = {PIPES: f"{folder}/pipe", LOGS: f"{folder}/log"}
        for path in added.values():
            Path(path).mkdir()
        environment = {**os.environ, **added}
        with _guarded(folder, environment, control):
            _start(environment, control, timeout_seconds)
            try:
                yield environment
            finally:
                _ask(QUIT, environment, control, timeout_seconds)


@contextmanager
def _guarded(
    folder: str, environment: Mapping[str, str], control: str
) -> Iterator[None]:
    """A shell waits for the end of this process, should that come before the block's."""
    with subprocess.Popen(
        ["/bin/sh", "-c", _GUARD, control, QUIT, folder],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # what kills this process's group is not for it
    ) as guard:
        try:
            yield
        finally:
            guard.kill()


def _start(
    environment: Mapping[str, str], control: str, timeout_seconds: float
) -> None:
    said = Path(environment[LOGS]) / "start"
    try:
        # Into a file: a daemon that kept a pipe open would keep its reader waiting.
        with said.open("w") as output:
            subprocess.run(
                [control, "-d"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                timeout=timeout_seconds,
                check=True,
            )
    except (OSError, subprocess.SubprocessError) as error:
        raise NoDaemon(_reason(error, said.read_text())) from None


def _ask(
    line: str, environment: Mapping[str, str], control: str, timeout_seconds: float
) -> str:
    """What the daemon answers to a line. Raises NoDaemon."""
    try:
        done = subprocess.run(
            [control],
            env=environment,
            input=f"{line}\n",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_seconds,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "output", None)
        raise NoDaemon(_reason(error, said)) from None
    # It ends with 0 in some releases when it found no daemon to speak to.
    if "Cannot find" in done.stdout:
        raise NoDaemon(done.stdout.strip())
    return done.stdout


def _reason(error: Exception, said: str | None) -> str:
    """In one line, with what the program said."""
    if isinstance(error, FileNotFoundError):
        return f"{error.filename} is not on this machine"
    if isinstance(error, subprocess.TimeoutExpired):
        return f"{error.cmd[0]} did not answer within {error.timeout:g} s"
    return " ".join(f"{error} {said or ''}".split())
