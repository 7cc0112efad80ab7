"""Which of the compose projects is meant."""

import pytest
from fake_docker import FakeDocker

from bench.experiments.projects import found
from mesh.errors import ConfigurationError

SERVICES = frozenset({"gateway", "decode"})
MESH = {"gateway": 1, "prefill": 1, "decode": 1}


@pytest.fixture
def docker() -> FakeDocker:
    docker = FakeDocker()
    docker.compose("shop", database=1)
    docker.compose("mesh", **MESH)
    return docker


@pytest.mark.parametrize("name", ["", "mesh"])
def test_the_only_mesh_is_found(docker: FakeDocker, name: str) -> None:
    """
    With and without its name: other projects have other services.
    """
    assert found(docker, name, SERVICES).name == "mesh"


def test_of_two_meshes_one_is_named(docker: FakeDocker) -> None:
    """
    None is scaled by mistake.
    """
    docker.compose("mesh-2", **MESH)

    with pytest.raises(ConfigurationError, match="--project: one of mesh, mesh-2"):
        found(docker, "", SERVICES)

    assert found(docker, "mesh-2", SERVICES).name == "mesh-2"


@pytest.mark.parametrize(
    ("name", "expected"),
    [("nope", "no compose project nope of a mesh; there is mesh"), ("shop", "shop")],
)
def test_an_unknown_one_is_told(docker: FakeDocker, name: str, expected: str) -> None:
    """
    Beside those that there are.
    """
    with pytest.raises(ConfigurationError, match=expected):
        found(docker, name, SERVICES)


def test_without_a_mesh_there_is_nothing_to_scale() -> None:
    """
    An engine may run nothing at all.
    """
    with pytest.raises(ConfigurationError, match="none runs here"):
        found(FakeDocker(), "", SERVICES)
