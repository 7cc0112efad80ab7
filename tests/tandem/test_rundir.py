"""The directory of one mesh: who owns it, and what is left of it."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from mesh.errors import ConfigurationError
from tandem.rundir import MAX_SOCKET_PATH_BYTES, address_of, take


def names(path: Path) -> set[str]:
    return {entry.name for entry in path.iterdir()}


def test_a_directory_has_one_mesh(tmp_path: Path) -> None:
    """
    While a mesh owns the directory, a second one is refused; afterwards it is free.
    """
    with (
        take(tmp_path),
        pytest.raises(ConfigurationError, match="another mesh runs in"),
        take(tmp_path),
    ):
        pass

    with take(tmp_path) as again:
        assert again.path == tmp_path


def test_only_logs_stay(tmp_path: Path) -> None:
    """
    Sockets, address and lock are gone when the mesh has stopped, even by an error.
    """

    def run_and_fail() -> None:
        with take(tmp_path) as run_dir:
            (run_dir.sockets / "kvstore.sock").touch()
            run_dir.publish(redis_url="unix:///r", gateway_url="http://g", pool="p")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_and_fail()

    assert names(tmp_path) == {"logs"}


def test_the_address_can_be_read_while_it_runs(tmp_path: Path) -> None:
    """
    Other commands find the mesh by its directory, and only while it runs.
    """
    with take(tmp_path) as run_dir:
        run_dir.publish(redis_url="unix:///r", gateway_url="http://g", pool="p")
        address = address_of(tmp_path)

    assert (address.redis_url, address.pool) == ("unix:///r", "p")
    with pytest.raises(ConfigurationError, match="no mesh runs in"):
        address_of(tmp_path)


def test_a_long_name_gets_short_sockets(tmp_path: Path) -> None:
    """
    Where the directory's name is too long for a socket, sockets lie elsewhere.
    """
    long = tmp_path / ("x" * 120)

    with take(long) as run_dir:
        sockets = run_dir.sockets
        length = len(os.fsencode(sockets / "kvstore.sock"))

    assert length <= MAX_SOCKET_PATH_BYTES
    assert not sockets.exists()


def test_leftovers_of_a_killed_mesh_are_swept(tmp_path: Path) -> None:
    """
    A mesh that was killed could not clean up; the next one does it.
    """
    with take(tmp_path) as killed:
        killed.publish(redis_url="unix:///r", gateway_url="http://g", pool="p")
        left = (tmp_path / "mesh.json").read_text()
    (tmp_path / "mesh.json").write_text(left)
    (tmp_path / "redis.sock").touch()

    with take(tmp_path):
        found = names(tmp_path)

    assert found == {"lock", "logs"}


@pytest.mark.parametrize("name", ["tandem-fused", "tandem-sockets-mine"])
def test_a_directory_may_be_called_like_ours(name: str) -> None:
    """
    Temporary directories go with their mesh, and a person's never does, whatever its name
    and wherever it lies: what is in it stays.
    """
    with TemporaryDirectory(prefix=f"{name}-", dir="/tmp") as folder:
        path = Path(folder)
        with take(path) as run_dir:
            run_dir.publish(redis_url="unix:///r", gateway_url="http://g", pool="p")
            left = (path / "mesh.json").read_bytes()
            (run_dir.logs / "decode-0.log").touch()
        (path / "mesh.json").write_bytes(left)  # as if it had been killed
        with take(path) as again:
            found = names(again.logs)

        assert found == {"decode-0.log"}
        assert names(path) == {"logs"}


def test_a_directory_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    """
    The reason is the system's own, in a line for a person.
    """
    (tmp_path / "file").touch()

    with pytest.raises(ConfigurationError, match="Not a directory"):
        take(tmp_path / "file" / "run").__enter__()
