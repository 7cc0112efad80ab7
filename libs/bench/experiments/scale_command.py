"""`tandem experiment scale`: from a project's name to a table and a picture."""

import asyncio
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from bench.benchmark import Plan
from bench.experiments.counts import Counts, parsed, walk
from mesh.errors import ConfigurationError

GATEWAY, GATEWAY_PORT = "gateway", 8000
OF_A_MESH = frozenset({GATEWAY, "decode"})  # a fused one has no others


def run(
    wanted: Mapping[str, str],
    plan: Plan,
    *,
    project: str,
    url: str,
    as_json: bool,
    plot: Path | None,
) -> None:
    """Measure and print; `wanted` are numbers by commas, or nothing for a service that
    keeps its containers. ConfigurationError when there is no engine or no such project.
    """
    _check_installed(plot)
    from bench.experiments.projects import connected, found
    from bench.experiments.scale import SERVICES, scaled
    from bench.experiments.scale_report import as_tables, draw

    numbers = {
        service: parsed(f"--{service}", text)
        for service, text in wanted.items()
        if text
    }
    if not numbers:
        raise ConfigurationError("say --prefill or --decode, like --decode 1,2,3")
    errors = Console(stderr=True)
    with connected() as engine:
        mesh = found(engine, project, OF_A_MESH)
        before = mesh.counts(SERVICES)
        steps = walk(*(numbers.get(each, [before[each]]) for each in SERVICES))
        errors.print(f"{mesh.name} has {Counts(**before)}", highlight=False)
        with mesh.restored(SERVICES), errors.status("") as status:
            at = url or mesh.url(GATEWAY, GATEWAY_PORT)
            result = asyncio.run(scaled(mesh, at, plan, steps, status.update))
            status.update(f"back to {Counts(**before)}")
    if plot:
        draw(result, plot)
    if as_json:
        print(result.model_dump_json(indent=2))
    else:
        Console().print(as_tables(result))


def _check_installed(plot: Path | None) -> None:
    for module in ("docker", *(["matplotlib"] if plot else [])):
        if not find_spec(module):
            raise ConfigurationError(f"this needs {module}: pip install {module}")
