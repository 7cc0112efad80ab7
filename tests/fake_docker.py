"""A Docker engine of dictionaries: what docker.APIClient answers, without one."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from docker.errors import NotFound

WORKER = {
    "Image": "tandem-worker",
    "Env": ["TANDEM_THREADS=0"],
    "Cmd": ["python", "-m", "decode"],
    "Healthcheck": {"Test": ["CMD", "true"]},
}
HARDENED = {
    "ReadonlyRootfs": True,
    "CapDrop": ["ALL"],
    "Tmpfs": {"/tmp": ""},
    "Init": True,
    "SecurityOpt": ["no-new-privileges:true"],
    "RestartPolicy": {"Name": "unless-stopped"},
    "Mounts": [{"Type": "volume", "Source": "mesh_store", "Target": "/run/tandem"}],
}


class FakeDocker:
    """Containers that are healthy as soon as they run; `done` is what it was told."""

    def __init__(self) -> None:
        self.done: list[tuple[str, str]] = []
        self._containers: dict[str, dict[str, Any]] = {}

    def compose(self, project: str, **counts: int) -> None:
        """As if `docker compose up` had started them."""
        for service, count in counts.items():
            for number in range(1, count + 1):
                name = f"{project}-{service}-{number}"
                labels = {
                    "com.docker.compose.project": project,
                    "com.docker.compose.service": service,
                    "com.docker.compose.container-number": str(number),
                    "com.docker.compose.oneoff": "False",
                    "com.docker.compose.config-hash": f"hash of {service}",
                }
                endpoint = {"Aliases": [name, service], "IPAddress": "172.18.0.9"}
                order = {
                    **WORKER,
                    "Labels": labels,
                    "HostConfig": HARDENED,
                    "NetworkingConfig": {"EndpointsConfig": {"mesh_default": endpoint}},
                }
                self.start(self.create_container_from_config(order, name)["Id"])
        self.done.clear()

    def names(self) -> list[str]:
        return sorted(each["Name"].strip("/") for each in self._containers.values())

    def named(self, name: str) -> dict[str, Any]:
        (found,) = (e for e in self._containers.values() if e["Name"] == f"/{name}")
        return found

    def containers(
        self, *, all: bool, filters: Mapping[str, Sequence[str]]
    ) -> list[dict[str, Any]]:
        assert all
        return [
            {"Id": each["Id"], "Labels": labels}
            for each in self._containers.values()
            if (labels := each["Config"]["Labels"])
            and {f.split("=")[0] for f in filters["label"]} <= labels.keys()
            and {f for f in filters["label"] if "=" in f}
            <= {f"{key}={value}" for key, value in labels.items()}
        ]

    def inspect_container(self, container: str) -> dict[str, Any]:
        return copy.deepcopy(self._found(container))

    def create_container_from_config(
        self, config: Mapping[str, Any], name: str
    ) -> dict[str, Any]:
        order = copy.deepcopy(dict(config))
        container_id = f"{len(self.done) + len(self._containers):012}{name}"
        host, network = order.pop("HostConfig"), order.pop("NetworkingConfig")
        order.setdefault("Hostname", container_id[:12])
        self._containers[container_id] = {
            "Id": container_id,
            "Name": f"/{name}",
            "Config": order,
            "HostConfig": host,
            "State": {"Running": False, "Health": {"Status": "starting"}},
            "NetworkSettings": {"Networks": network["EndpointsConfig"], "Ports": {}},
        }
        self.done.append(("create", name))
        return {"Id": container_id}

    def start(self, container: str) -> None:
        state = self._found(container)["State"]
        if not state["Running"]:
            state |= {"Running": True, "Health": {"Status": "healthy"}}
            self._note("start", container)

    def stop(self, container: str) -> None:
        self._found(container)["State"]["Running"] = False
        self._note("stop", container)

    def remove_container(self, container: str) -> None:
        self._note("remove", container)
        assert not self._containers.pop(container)["State"]["Running"]

    def _note(self, verb: str, container: str) -> None:
        self.done.append((verb, self._found(container)["Name"].strip("/")))

    def _found(self, container: str) -> dict[str, Any]:
        if container not in self._containers:
            raise NotFound("No such container")
        return self._containers[container]
