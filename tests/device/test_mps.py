"""Looking for an MPS daemon, with a script in place of NVIDIA's program."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import wait_until

from device.mps import CONTROL, LOGS, PERCENTAGE, PIPES, NoDaemon, look, own_daemon

# Starts by making its socket, quits by taking it away, and knows no server.
SCRIPT = """#!/bin/sh
pipes="$CUDA_MPS_PIPE_DIRECTORY"
[ "$1" = -d ] && exec touch "$pipes/control"
read line
case "$line" in quit*) rm "$pipes/control" ;; esac
"""


def program(folder: Path, script: str = SCRIPT) -> str:
    path = folder / CONTROL
    path.write_text(script)
    path.chmod(0o755)
    return str(path)


def pipes_with_socket(folder: Path) -> dict[str, str]:
    (folder / "control").touch()
    return {PIPES: str(folder), "PATH": os.environ["PATH"]}


def test_a_daemon_that_answers_is_reachable(tmp_path: Path) -> None:
    """
    Its socket is there, and it answers what is asked through the control program.
    """
    environment = pipes_with_socket(tmp_path)

    found = look(environment, program(tmp_path))

    assert found.is_reachable
    assert found.pipe_directory == tmp_path


def test_a_client_s_part_is_in_its_environment(tmp_path: Path) -> None:
    """
    What a process has of the GPU for as long as it runs is found beside the daemon.
    """
    environment = pipes_with_socket(tmp_path) | {PERCENTAGE: "40"}

    found = look(environment, program(tmp_path))

    assert found.percent == "40"


AGAIN = f"""
import os, sys
from device.mps import start_anew
print(os.getpid(), sys.argv[1:], os.environ.get("{PERCENTAGE}"), flush=True)
if "{PERCENTAGE}" not in os.environ:
    start_anew(60)
"""


def test_a_program_starts_anew_with_its_part() -> None:
    """
    The same process and arguments, and the percentage from the very start.
    """
    done = subprocess.run(
        [sys.executable, "-c", AGAIN, "x"], capture_output=True, text=True, check=True
    )

    before, after = (line.split(" ", 1) for line in done.stdout.splitlines())
    assert before[0] == after[0]
    assert (before[1], after[1]) == ("['x'] None", "['x'] 60")


def test_without_a_socket_nobody_is_asked(tmp_path: Path) -> None:
    """
    Where there is no control socket, the answer says in which directory.
    """
    found = look({PIPES: str(tmp_path)}, "/nowhere/control")

    assert found.reason == f"no daemon listens in {tmp_path}"


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("#!/bin/sh\nexec sleep 60\n", "did not answer within 0.2 s"),
        ("#!/bin/sh\necho out of order\nexit 1\n", "out of order"),
        ("#!/bin/sh\necho Cannot find MPS control daemon process\n", "Cannot find"),
    ],
    ids=["hangs", "fails", "finds none"],
)
def test_a_daemon_that_does_not_answer_is_not_reachable(
    tmp_path: Path, script: str, reason: str
) -> None:
    """
    A socket that a dead or hanging daemon left behind is no daemon.
    """
    environment = pipes_with_socket(tmp_path)

    found = look(environment, program(tmp_path, script), timeout_seconds=0.2)

    assert not found.is_reachable
    assert reason in found.reason


def test_without_the_control_program_none_is_reachable(tmp_path: Path) -> None:
    """
    A socket alone proves nothing: without the program the answer names the program.
    """
    environment = pipes_with_socket(tmp_path)

    found = look(environment, "/nowhere/control")

    assert found.reason == "/nowhere/control is not on this machine"


def test_a_daemon_of_our_own_ends_with_its_block(tmp_path: Path) -> None:
    """
    It has directories of its own, is reachable while inside, and nothing is left of it.
    """
    control = program(tmp_path)

    with own_daemon(control) as environment:
        inside = look(environment, control)

    assert inside.is_reachable
    assert inside.pipe_directory != Path("/tmp/nvidia-mps")
    assert not Path(environment[PIPES]).exists()
    assert not Path(environment[LOGS]).exists()


OWNER = """
import sys
from device.mps import PIPES, own_daemon
with own_daemon(sys.argv[1]) as environment:
    print(environment[PIPES], flush=True)
    sys.stdin.read()
"""


async def test_a_daemon_of_our_own_does_not_outlive_a_kill(tmp_path: Path) -> None:
    """
    Whoever started it is killed and can do nothing any more: the daemon is asked to quit,
    and its directories go.
    """
    asked = tmp_path / "asked"
    control = program(tmp_path, f'{SCRIPT}echo "$line" >> {asked}\n')

    pipes, was_there = pipes_of_killed_owner(control)

    await wait_until(lambda: not pipes.parent.exists())
    assert was_there
    assert asked.read_text() == "quit -t 10\n"


def pipes_of_killed_owner(control: str) -> tuple[Path, bool]:
    """Where the daemon of a process that was killed listens, and whether it did."""
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, control],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as owner:
        assert owner.stdout
        pipes = Path(owner.stdout.readline().strip())
        was_there = (pipes / "control").exists()
        owner.kill()
    return pipes, was_there


@pytest.mark.parametrize("script", [None, "#!/bin/sh\necho no GPU >&2\nexit 1\n"])
def test_a_daemon_that_cannot_start_is_a_typed_error(
    tmp_path: Path, script: str | None
) -> None:
    """
    The program is missing, or it gives up: NoDaemon says which.
    """
    control = program(tmp_path, script) if script else "/nowhere/control"

    with (
        pytest.raises(NoDaemon, match="no GPU" if script else "not on this machine"),
        own_daemon(control),
    ):
        pass
