"""The directory of one mesh: its lock, its sockets, its logs and its address.

Everything but the logs is gone when the mesh has stopped.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ValidationError

from mesh.errors import ConfigurationError

MAX_SOCKET_PATH_BYTES = 107  # what the kernel's sockaddr_un holds
LONGEST_SOCKET_NAME = "kvstore.sock"
TEMPORARY = Path("/tmp")  # itself: the usual variable may name a long path, too
TEMPORARY_PREFIX = "tandem-sockets-"


class Address(BaseModel, frozen=True):
    """Where a running mesh is found: the content of `mesh.json`."""

    pid: int  # of the supervisor
    redis_url: str
    gateway_url: str
    pool: str
    sockets: Path


@dataclass(frozen=True, slots=True)
class RunDir:
    """A directory that is ours while the mesh runs."""

    path: Path
    sockets: Path  # the same, or a temporary one where its name is too long

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    def publish(self, *, redis_url: str, gateway_url: str, pool: str) -> None:
        """Tell the other commands where the mesh is."""
        address = Address(
            pid=os.getpid(),
            redis_url=redis_url,
            gateway_url=gateway_url,
            pool=pool,
            sockets=self.sockets,
        )
        draft = self.path / "mesh.json.new"
        draft.write_text(address.model_dump_json(indent=2) + "\n")
        draft.replace(self.path / "mesh.json")


@contextmanager
def take(path: Path) -> Iterator[RunDir]:
    """Own the directory; ConfigurationError when another mesh does."""
    path = path.expanduser().absolute()
    with _locked(path):
        _sweep(path)
        with _sockets(path) as sockets:
            try:
                yield RunDir(path, sockets)
            finally:
                _sweep(path)


def address_of(path: Path) -> Address:
    """Where the mesh of this directory is; ConfigurationError when none runs."""
    address = _published(path)
    if address is None or not is_alive(address.pid):
        raise ConfigurationError(f"no mesh runs in {path}")
    return address


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _published(path: Path) -> Address | None:
    try:
        return Address.model_validate_json((path / "mesh.json").read_text())
    except (OSError, ValidationError):
        return None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    try:
        (path / "logs").mkdir(parents=True, exist_ok=True)
        lock = _lock(path / "lock")
    except BlockingIOError:
        raise ConfigurationError(f"another mesh runs in {path}") from None
    except OSError as error:
        raise ConfigurationError(f"run directory {path}: {error.strerror}") from None
    try:
        yield
    finally:
        (path / "lock").unlink(missing_ok=True)
        os.close(lock)


def _lock(path: Path) -> int:
    """A locked descriptor of the file; BlockingIOError when someone else has it."""
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            raise
        if os.fstat(lock).st_nlink:
            return lock
        os.close(lock)  # its last owner removed it between our two calls


@contextmanager
def _sockets(path: Path) -> Iterator[Path]:
    """Where sockets go: the directory itself unless its name is too long for them."""
    if len(os.fsencode(path / LONGEST_SOCKET_NAME)) <= MAX_SOCKET_PATH_BYTES:
        yield path
        return
    with tempfile.TemporaryDirectory(
        prefix=TEMPORARY_PREFIX, dir=TEMPORARY, ignore_cleanup_errors=True
    ) as short:
        yield Path(short)


def _is_temporary(sockets: Path, path: Path) -> bool:
    """Whether they are where `_sockets` puts those of a run directory with a long name.

    A person may call a run directory what we call ours.
    """
    is_ours = sockets.parent == TEMPORARY and sockets.name.startswith(TEMPORARY_PREFIX)
    return is_ours and sockets != path


def _sweep(path: Path) -> None:
    """Remove what a mesh leaves here, also one that was killed."""
    address = _published(path)
    if address is not None and _is_temporary(address.sockets, path):
        shutil.rmtree(address.sockets, ignore_errors=True)
    for name in ("mesh.json", "mesh.json.new"):
        (path / name).unlink(missing_ok=True)
    for socket in path.glob("*.sock"):
        socket.unlink()
