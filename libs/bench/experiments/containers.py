"""The containers of a running compose project, more or fewer of each service.

The Docker engine knows nothing of services: it is told to make copies of a container, and
to take away those of the highest numbers. Compose counts all of them as its own.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from docker.errors import DockerException
from requests import RequestException

from bench.experiments.copies import (
    IS_ONE_OFF,
    NUMBER,
    PROJECT,
    SERVICE,
    copied,
    name_of,
)
from mesh.errors import ConfigurationError


class Engine(Protocol):
    """What is asked of the Docker engine: docker.APIClient."""

    def containers(
        self, *, all: bool, filters: Mapping[str, Sequence[str]]
    ) -> list[dict[str, Any]]: ...

    def inspect_container(self, container: str) -> dict[str, Any]: ...

    def create_container_from_config(
        self, config: Mapping[str, Any], name: str
    ) -> dict[str, Any]: ...

    def start(self, container: str) -> None: ...

    def stop(self, container: str) -> None: ...

    def remove_container(self, container: str) -> None: ...


class Project:
    """One compose project; every method asks the engine, and waits for it.

    ConfigurationError where it cannot do what it was asked.
    """

    def __init__(self, engine: Engine, name: str) -> None:
        self._engine = engine
        self.name = name

    def counts(self, services: Sequence[str]) -> dict[str, int]:
        return {service: len(self._containers(service)) for service in services}

    def scale(self, counts: Mapping[str, int]) -> None:
        """Start what is missing, and take away what is too much, the newest first.

        What is stopped has its grace period: a worker leaves its sequences to others.
        """
        for service, count in counts.items():
            present = self._containers(service)
            if not present and not count:
                continue
            if not present:
                raise ConfigurationError(
                    f"{self.name} has no container of {service} to copy"
                )
            with answered():
                self._grow(present, count)
                self._shrink(present, count)

    def not_ready(self, services: Sequence[str]) -> list[str]:
        """Names of containers that are not running, or not healthy yet."""
        found = [each for service in services for each in self._containers(service)]
        with answered():
            states = [self._engine.inspect_container(each["Id"]) for each in found]
        return [each["Name"].strip("/") for each in states if not _is_ready(each)]

    def url(self, service: str, port: int) -> str:
        """Where this machine reaches a service's port."""
        for each in self._containers(service):
            with answered():
                details = self._engine.inspect_container(each["Id"])
            for binding in details["NetworkSettings"]["Ports"].get(f"{port}/tcp") or ():
                host = binding["HostIp"]
                host = "127.0.0.1" if host in ("", "0.0.0.0", "::") else host
                return f"http://{host}:{binding['HostPort']}"
        raise ConfigurationError(f"{self.name} has no port {port} of {service} open")

    @contextmanager
    def restored(self, services: Sequence[str]) -> Iterator[None]:
        """Whatever happens inside, afterwards there are as many containers as now."""
        before = self.counts(services)
        try:
            yield
        finally:
            self.scale(before)

    def _grow(self, present: Sequence[Mapping[str, Any]], count: int) -> None:
        for each in present[:count]:
            self._engine.start(each["Id"])
        newest = self._engine.inspect_container(present[-1]["Id"])
        for number in range(1, 1 + count - len(present)):
            number += _number(present[-1])
            name = name_of(newest["Config"]["Labels"], number)
            created = self._engine.create_container_from_config(
                copied(newest, number), name
            )
            self._engine.start(created["Id"])

    def _shrink(self, present: Sequence[Mapping[str, Any]], count: int) -> None:
        for each in reversed(present[count:]):
            self._engine.stop(each["Id"])
            self._engine.remove_container(each["Id"])

    def _containers(self, service: str) -> list[dict[str, Any]]:
        """By their numbers, those that do not run among them."""
        labels = [f"{PROJECT}={self.name}", f"{SERVICE}={service}"]
        labels += [f"{IS_ONE_OFF}=False"]
        with answered():
            found = self._engine.containers(all=True, filters={"label": labels})
        return sorted(found, key=_number)


@contextmanager
def answered() -> Iterator[None]:
    """What the engine refuses is one line for a person."""
    try:
        yield
    except (DockerException, RequestException) as error:
        raise ConfigurationError(f"the Docker engine: {error}") from None


def _number(container: Mapping[str, Any]) -> int:
    return int(container["Labels"][NUMBER])


def _is_ready(container: Mapping[str, Any]) -> bool:
    state = container["State"]
    health = state.get("Health")
    return state["Running"] and (health is None or health["Status"] == "healthy")
