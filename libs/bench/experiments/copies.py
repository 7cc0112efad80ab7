"""A container like another one of its compose service, as an order to the Docker engine.

What the engine tells of a container has the shape in which it takes an order for one. By
their labels compose knows its containers again: copies carry them, but for the number.
"""

from collections.abc import Mapping
from typing import Any

PROJECT = "com.docker.compose.project"
SERVICE = "com.docker.compose.service"
NUMBER = "com.docker.compose.container-number"
IS_ONE_OFF = "com.docker.compose.oneoff"  # of `docker compose run`

SHORT_ID = 12  # characters


def name_of(labels: Mapping[str, str], number: int) -> str:
    """As compose names its containers."""
    return f"{labels[PROJECT]}-{labels[SERVICE]}-{number}"


def copied(container: Mapping[str, Any], number: int) -> dict[str, Any]:
    """The order for number `number` of the service that this one belongs to."""
    config = dict(container["Config"])
    config["Labels"] = {**config["Labels"], NUMBER: str(number)}
    short_id = container["Id"][:SHORT_ID]
    if config.get("Hostname") == short_id:  # the engine's choice, and so the copy's
        del config["Hostname"]
    own_names = {container["Name"].removeprefix("/"), short_id}
    networks = container["NetworkSettings"]["Networks"]
    return config | {
        "HostConfig": container["HostConfig"],
        "NetworkingConfig": {
            "EndpointsConfig": {
                name: {"Aliases": _aliases(endpoint, own_names, config, number)}
                for name, endpoint in networks.items()
            }
        },
    }


def _aliases(
    endpoint: Mapping[str, Any],
    own_names: set[str],
    config: Mapping[str, Any],
    number: int,
) -> list[str]:
    """What others call it in a network: the service's names, and its own."""
    shared = [each for each in endpoint["Aliases"] or () if each not in own_names]
    return [name_of(config["Labels"], number), *shared]
