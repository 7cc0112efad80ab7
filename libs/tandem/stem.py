"""A stem for several meshes, one after the other: torch is imported once for all."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from mesh.parentage import die_with_parent
from mesh.sprout import stem_socket
from tandem import plan
from tandem.rundir import TEMPORARY


@contextmanager
def shared_stem() -> Iterator[Path]:
    """The socket for `tandem up --stem`, while inside."""
    with (
        TemporaryDirectory(prefix="tandem-stem-", dir=TEMPORARY) as folder,
        stem_socket(Path(folder) / plan.STEM_SOCKET) as listener,
    ):
        command = plan.stem(listener.fileno())
        with subprocess.Popen(
            command.argv,
            env=command.env,
            pass_fds=command.pass_fds,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for meshes: they stop before it
            preexec_fn=partial(die_with_parent, os.getpid()),
        ) as process:
            try:
                yield Path(folder) / plan.STEM_SOCKET
            finally:
                process.kill()
