"""Which compose projects run on the Docker engine of this machine."""

from collections.abc import Iterator
from contextlib import contextmanager

import docker

from bench.experiments.containers import Engine, Project, answered
from bench.experiments.copies import PROJECT, SERVICE
from mesh.errors import ConfigurationError

ENGINE_SECONDS = 60.0  # for one answer; stopping has the grace period besides


@contextmanager
def connected() -> Iterator[Engine]:
    """The engine that DOCKER_HOST names, or this machine's own.

    ConfigurationError if none answers.
    """
    with answered():
        client = docker.from_env(timeout=ENGINE_SECONDS)
        client.ping()
    try:
        yield client.api
    finally:
        client.close()


def found(engine: Engine, name: str, services: frozenset[str]) -> Project:
    """The project of this name, or without one the only project with these services."""
    with answered():
        containers = engine.containers(all=True, filters={"label": [PROJECT, SERVICE]})
    projects: dict[str, set[str]] = {}
    for each in containers:
        labels = each["Labels"]
        projects.setdefault(labels[PROJECT], set()).add(labels[SERVICE])
    meshes = sorted(each for each in projects if services <= projects[each])
    if name in meshes:
        return Project(engine, name)
    if name:
        there = f"there is {', '.join(meshes)}" if meshes else "there is none"
        raise ConfigurationError(f"no compose project {name} of a mesh; {there}")
    if len(meshes) != 1:
        many = f"one of {', '.join(meshes)}" if meshes else "none runs here"
        raise ConfigurationError(f"name the compose project by --project: {many}")
    return Project(engine, meshes[0])
