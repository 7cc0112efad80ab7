"""What `tandem up` does about MPS when a GPU is to be split."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from device.mps import Mps, NoDaemon
from tandem.up import mps_daemon


def test_a_split_brings_its_own_mps_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Where no daemon answers, services are started as clients of one of our own.
    """
    monkeypatch.setattr(os, "environ", dict(os.environ))
    absent = Mps(Path("/nowhere"), "no daemon listens")

    with mps_daemon(lambda: absent, lambda: nullcontext({"CUDA_MPS_PIPE": "ours"})):
        inside = os.environ.get("CUDA_MPS_PIPE")

    assert inside == "ours"


def test_without_mps_the_mesh_starts_whole(capsys: pytest.CaptureFixture[str]) -> None:
    """
    A machine that has no MPS serves all the same, and says why nothing is split.
    """

    @contextmanager
    def missing() -> Iterator[dict[str, str]]:
        raise NoDaemon("nvidia-cuda-mps-control is not on this machine")
        yield {}

    with mps_daemon(lambda: Mps(Path("/nowhere"), "none"), missing):
        pass

    assert "is not on this machine" in capsys.readouterr().err


def test_a_daemon_that_does_not_quit_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    The mesh has ended by then: who started it reads a line, not a trace.
    """
    monkeypatch.setattr(os, "environ", dict(os.environ))

    @contextmanager
    def stubborn() -> Iterator[dict[str, str]]:
        yield {}
        raise NoDaemon("it did not answer within 20 s")

    with mps_daemon(lambda: Mps(Path("/nowhere"), "none"), stubborn):
        pass

    assert "does not quit" in capsys.readouterr().err
