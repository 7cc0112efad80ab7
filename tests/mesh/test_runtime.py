"""How a service starts and stops, seen from outside its process."""

import json
import os
import signal
import subprocess
import sys

SERVICE = """
import asyncio, sys
from mesh.errors import ConfigurationError, Unreachable
from mesh.runtime import run
from mesh.settings import ServiceSettings

class Settings(ServiceSettings):
    mood: str = "good"

async def serve(settings, worker_id, stopping):
    if settings.mood == "bad":
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fail(ConfigurationError("the mood is bad")), name="x")
    if settings.mood == "lost":
        raise Unreachable("nobody is there")
    print("serving", worker_id, flush=True)
    await stopping.wait()

async def fail(error):
    raise error

run("example", serve, Settings)
"""


def start(**settings: str) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TANDEM_")}
    return subprocess.Popen(
        [sys.executable, "-c", SERVICE],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment | settings,
    )


def test_a_signal_stops_the_service_cleanly() -> None:
    """
    SIGTERM lets a service end what it does, with exit code 0.
    """
    with start() as service:
        assert service.stdout
        serving = service.stdout.readline()
        service.send_signal(signal.SIGTERM)
        _, stderr = service.communicate(timeout=10)

    assert serving.startswith("serving example-")
    assert service.returncode == 0
    assert "service.stopped" in stderr


def test_log_lines_are_events_with_fields() -> None:
    """
    Without a terminal each log line is JSON that names its service and its event.
    """
    with start() as service:
        assert service.stdout
        service.stdout.readline()
        service.send_signal(signal.SIGINT)
        _, stderr = service.communicate(timeout=10)

    first = json.loads(stderr.splitlines()[0])
    assert first["event"] == "service.starting"
    assert first["service"] == "example"
    assert first["worker_id"].startswith("example-")


def test_a_wrong_setting_is_one_line_and_exit_2() -> None:
    """
    Nothing starts with a wrong setting, and the person reads one line.
    """
    with start(TANDEM_MOOOD="good") as service:
        _, stderr = service.communicate(timeout=10)

    assert service.returncode == 2
    assert stderr == "example: unknown setting: TANDEM_MOOOD\n"


def test_a_wrong_setting_found_later_reads_the_same() -> None:
    """
    A configuration error deep in a task group is still one line and exit code 2.
    """
    with start(TANDEM_MOOD="bad") as service:
        _, stderr = service.communicate(timeout=10)

    assert service.returncode == 2
    assert stderr.splitlines()[-1] == "example: the mood is bad"


def test_a_lost_peer_ends_the_process_with_1() -> None:
    """
    A service that lost what it cannot work without ends, so that it is started anew.
    """
    with start(TANDEM_MOOD="lost") as service:
        _, stderr = service.communicate(timeout=10)

    assert service.returncode == 1
    assert "nobody is there" in stderr
    assert "Traceback" not in stderr
