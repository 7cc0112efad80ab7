"""`tandem experiment scale` on a real mesh, whose containers are pretended.

tests/compose/run does the same to real ones, where there is a Docker engine.
"""

import time
from pathlib import Path

import pytest
from fake_docker import FakeDocker
from rich.console import Console
from running import RunningMesh
from small_load import SMALL

from bench.experiments import scale
from bench.experiments.containers import Project
from bench.experiments.counts import Counts
from bench.experiments.scale_report import as_tables, draw
from mesh.errors import ConfigurationError

ONE, TWO = Counts(prefill=1, decode=1), Counts(prefill=1, decode=2)


class Sedate(FakeDocker):
    """Its containers take a while to start, as real ones do: streams go on meanwhile."""

    start_seconds = 0.0

    def start(self, container: str) -> None:
        time.sleep(self.start_seconds)
        super().start(container)


@pytest.fixture
def project() -> Project:
    docker = Sedate()
    docker.compose("mesh", prefill=1, decode=3)
    docker.start_seconds = 1.0
    return Project(docker, "mesh")


async def test_a_load_is_measured_at_points_and_between_them(
    mesh: RunningMesh, project: Project, tmp_path: Path
) -> None:
    """
    Every answer is whole, streams were open while containers changed, and people get a
    table and a picture of it.
    """
    scaled = await scale.scaled(project, mesh.url, SMALL, [ONE, TWO], lambda _: None)

    assert project.counts(["prefill", "decode"]) == {"prefill": 1, "decode": 2}
    assert [point.counts for point in scaled.points] == [ONE, TWO]
    assert [point.run.num_requests for point in scaled.points] == [4, 4]
    (move,) = scaled.moves
    assert move.pauses
    for each in (*scaled.points, move):
        assert each.run.num_failed == each.num_incomplete == 0
    draw(scaled, tmp_path / "scale.png")
    assert (tmp_path / "scale.png").read_bytes().startswith(b"\x89PNG")
    with (console := Console(width=200)).capture() as printed:
        console.print(as_tables(scaled))
    assert "1 to 2" in printed.get()


async def test_a_container_that_does_not_become_ready_ends_it() -> None:
    """
    It is named, after as long as a start may take.
    """

    class Slow(FakeDocker):
        def start(self, container: str) -> None:
            super().start(container)
            self._found(container)["State"]["Health"]["Status"] = "starting"

    docker = Slow()
    docker.compose("mesh", prefill=1, decode=1)

    with pytest.raises(ConfigurationError, match=r"within 0.05 s: .*mesh-decode-2"):
        await scale.arrive(Project(docker, "mesh"), TWO, ready_seconds=0.05)
