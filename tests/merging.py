"""Compose's own reading of several files, where there is a compose."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
BASE = "docker-compose.yml"


def merged(name: str) -> dict[str, Any]:
    """The base and this file; skips where there is no compose."""
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"]).returncode:
        pytest.skip("there is no docker compose here")
    files = [word for file in (BASE, name) for word in ("-f", str(ROOT / file))]
    done = subprocess.run(
        [docker, "compose", *files, "config", "--format", "json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.returncode, done.stderr
    return json.loads(done.stdout)
