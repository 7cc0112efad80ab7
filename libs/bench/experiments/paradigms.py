"""`tandem experiment paradigms`: systems one after another, each under the same load."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import aiohttp
from rich.console import Console
from rich.table import Table

from bench.client import connected
from bench.experiments.loads import Load
from bench.experiments.meshes import serving
from bench.experiments.systems import KINDS, System
from bench.experiments.unloaded import Unloaded, unloaded
from bench.measures import SLO
from mesh.errors import ConfigurationError

ANSWER_SECONDS = 120.0
NUM_UNLOADED = 9


@dataclass(frozen=True, slots=True)
class Plan:
    """What a person asked for."""

    options: Sequence[str]  # of `tandem up`, for each mesh
    systems: Sequence[str]
    peers: Sequence[System]
    load: Load
    seed: int
    slo: SLO
    kv_blocks: int


def run(plan: Plan) -> None:
    """Measure and print; ConfigurationError when a system cannot be asked at all."""
    found = asyncio.run(_measure(plan))
    table = Table("alone", "TTFT, ms", "TPOT, ms")
    for name, each in found.items():
        table.add_row(name, f"{1000 * each.ttft:.1f}", f"{1000 * each.tpot:.1f}")
    Console().print(table)


async def _measure(plan: Plan) -> dict[str, Unloaded]:
    slo, found = plan.slo, {}
    systems = [*(KINDS[name] for name in plan.systems)]
    for kind in systems:
        system = kind(plan.kv_blocks, slo)
        async with serving(system, plan.options) as url:
            found[system.name] = await _alone(url, plan)
            slo = found[system.name].slo(slo)
    return found


async def _alone(url: str, plan: Plan) -> Unloaded:
    requests = plan.load.requests(1.0, float(4 * NUM_UNLOADED), f"{plan.seed} alone")
    try:
        async with connected(url, "", ANSWER_SECONDS) as client:
            return await unloaded(requests[:NUM_UNLOADED], client.ask)
    except (aiohttp.ClientError, TimeoutError) as error:
        reason = str(error) or type(error).__name__
        raise ConfigurationError(f"no answer from {url}: {reason}") from None
