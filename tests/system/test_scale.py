"""`tandem scale`, as people call it."""

import subprocess
import sys

from running import RunningMesh


def test_it_says_how_many_workers_there_are(mesh: RunningMesh) -> None:
    """
    Asked for as many as there are it changes nothing, and names the others too.
    """
    command = [sys.executable, "-m", "tandem", "scale", "decode=2"]
    command += ["--run-dir", str(mesh.run_dir)]

    printed = subprocess.check_output(command, text=True, timeout=60)

    assert printed.split(", ") == ["prefill 2", "decode 2\n"]
