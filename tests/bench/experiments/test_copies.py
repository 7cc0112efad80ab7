"""Orders for containers like others."""

from typing import Any

import pytest
from fake_docker import HARDENED, WORKER, FakeDocker

from bench.experiments.copies import NUMBER, copied


@pytest.fixture
def original() -> dict[str, Any]:
    docker = FakeDocker()
    docker.compose("mesh", decode=1)
    return docker.named("mesh-decode-1")


def test_a_copy_is_what_the_original_is(original: dict[str, Any]) -> None:
    """
    Image, command, environment, health check, and what it may and may not do.
    """
    order = copied(original, 7)

    assert order["HostConfig"] == HARDENED
    assert {name: order[name] for name in WORKER} == WORKER


def test_compose_counts_a_copy_as_its_own(original: dict[str, Any]) -> None:
    """
    Its labels are the original's, but for the number.
    """
    labels = copied(original, 7)["Labels"]

    assert labels == original["Config"]["Labels"] | {NUMBER: "7"}
    assert original["Config"]["Labels"][NUMBER] == "1"


def test_a_copy_is_found_by_its_service(original: dict[str, Any]) -> None:
    """
    In the original's networks, by the service's name and one of its own; it gets another
    address there.
    """
    order = copied(original, 7)

    networks = order["NetworkingConfig"]["EndpointsConfig"]
    assert networks == {"mesh_default": {"Aliases": ["mesh-decode-7", "decode"]}}


@pytest.mark.parametrize("chosen", [True, False])
def test_only_a_chosen_hostname_is_copied(
    original: dict[str, Any], chosen: bool
) -> None:
    """
    One that the engine made of the original's id is not the copy's.
    """
    if chosen:
        original["Config"]["Hostname"] = "decoder"

    order = copied(original, 7)

    assert order.get("Hostname") == ("decoder" if chosen else None)
