"""More containers of a service, and fewer, before an engine of dictionaries."""

import pytest
from fake_docker import FakeDocker

from bench.experiments.containers import Project
from mesh.errors import ConfigurationError


@pytest.fixture
def docker() -> FakeDocker:
    docker = FakeDocker()
    docker.compose("mesh", gateway=1, prefill=1, decode=2)
    docker.compose("other", prefill=1, decode=5)
    return docker


@pytest.fixture
def project(docker: FakeDocker) -> Project:
    return Project(docker, "mesh")


def test_containers_are_counted_by_service(project: Project) -> None:
    """
    Those of the same service in another project are not.
    """
    assert project.counts(["prefill", "decode"]) == {"prefill": 1, "decode": 2}


def test_what_is_missing_is_started(docker: FakeDocker, project: Project) -> None:
    """
    With the numbers after the last one; others are left as they are.
    """
    project.scale({"prefill": 1, "decode": 4})

    assert docker.done == [
        ("create", "mesh-decode-3"),
        ("start", "mesh-decode-3"),
        ("create", "mesh-decode-4"),
        ("start", "mesh-decode-4"),
    ]
    assert project.not_ready(["prefill", "decode"]) == []


def test_what_is_too_much_is_stopped(docker: FakeDocker, project: Project) -> None:
    """
    The newest first, and each is removed when it has left its sequences to others.
    """
    project.scale({"decode": 3})
    docker.done.clear()

    project.scale({"decode": 1})

    assert docker.done == [
        ("stop", "mesh-decode-3"),
        ("remove", "mesh-decode-3"),
        ("stop", "mesh-decode-2"),
        ("remove", "mesh-decode-2"),
    ]


def test_a_stopped_one_is_started_again(docker: FakeDocker, project: Project) -> None:
    """
    It is one of those that there are, and until it runs the service is not ready.
    """
    docker.stop(docker.named("mesh-decode-2")["Id"])
    assert project.not_ready(["decode"]) == ["mesh-decode-2"]

    project.scale({"decode": 2})

    assert project.not_ready(["decode"]) == []
    assert docker.done[-1] == ("start", "mesh-decode-2")


def test_an_unhealthy_one_is_not_ready(docker: FakeDocker, project: Project) -> None:
    """
    A container may run long before its process is of use.
    """
    docker.named("mesh-decode-1")["State"]["Health"]["Status"] = "starting"

    assert project.not_ready(["prefill", "decode"]) == ["mesh-decode-1"]


@pytest.mark.parametrize("decode", [1, 2, 4])
def test_numbers_are_restored(
    docker: FakeDocker, project: Project, decode: int
) -> None:
    """
    Also when Ctrl-C ends what needed others.
    """
    before = docker.names()

    def interrupted() -> None:
        with project.restored(["prefill", "decode"]):
            project.scale({"prefill": 3, "decode": decode})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert docker.names() == before


def test_a_service_without_containers_has_none_to_copy(docker: FakeDocker) -> None:
    """
    A fused mesh has no prefill workers, and gets none.
    """
    docker.compose("fused", gateway=1, decode=1)

    Project(docker, "fused").scale({"prefill": 0, "decode": 2})

    assert docker.done[-1] == ("start", "fused-decode-2")
    with pytest.raises(ConfigurationError, match="fused has no container of prefill"):
        Project(docker, "fused").scale({"prefill": 1})


def test_what_the_engine_refuses_is_told(docker: FakeDocker) -> None:
    """
    In its own words: here a container is gone before it is stopped.
    """

    class Forgetful(FakeDocker):
        def stop(self, container: str) -> None:
            super().stop("gone")

    forgetful = Forgetful()
    forgetful.compose("mesh", decode=2)

    with pytest.raises(ConfigurationError, match="engine: No such container"):
        Project(forgetful, "mesh").scale({"decode": 1})


@pytest.mark.parametrize(
    ("host_ip", "expected"), [("0.0.0.0", "127.0.0.1"), ("10.0.0.7", "10.0.0.7")]
)
def test_the_gateway_is_found_by_its_port(
    docker: FakeDocker, project: Project, host_ip: str, expected: str
) -> None:
    """
    At the address that its container opens it on.
    """
    gateway = docker.named("mesh-gateway-1")["NetworkSettings"]
    gateway["Ports"] = {"8000/tcp": [{"HostIp": host_ip, "HostPort": "18000"}]}

    assert project.url("gateway", 8000) == f"http://{expected}:18000"


def test_a_port_that_is_not_open_is_told(project: Project) -> None:
    """
    Without it nobody can ask this mesh from here.
    """
    with pytest.raises(ConfigurationError, match="no port 8000 of gateway"):
        project.url("gateway", 8000)
