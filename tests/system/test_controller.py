"""Shares follow an SLO in a whole mesh, whichever gateway leads."""

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import aiohttp
import pytest
from asking import complete
from running import STORIES, RunningMesh, running_mesh
from waiting import wait_until

from tandem.rundir import address_of

# TTFT fails whatever is done, TPOT never does: prefill gets all that it can get.
SLO = {"slo_ttft": 0.00001, "slo_tpot": 10.0, "slo_window": 0.2}
LIMIT = 80


@pytest.fixture(scope="module")
def mesh() -> Iterator[RunningMesh]:
    """A worker of each kind, and a gateway that steers."""
    options = ["--served-model-name", "test", "--engine", "counting"]
    for name, value in SLO.items():
        options += [f"--{name.replace('_', '-')}", f"{value:f}"]
    with running_mesh(STORIES, *options) as running:
        yield running


@contextmanager
def second_gateway(mesh: RunningMesh) -> Iterator[None]:
    """Another process of the kind, at a port that nobody asks."""
    settings = {
        "TANDEM_REDIS_URL": address_of(mesh.run_dir).redis_url,
        "TANDEM_MODEL": str(STORIES),
        "TANDEM_PORT": "0",
        "TANDEM_SLO_TTFT_SECONDS": str(SLO["slo_ttft"]),
        "TANDEM_SLO_TPOT_SECONDS": str(SLO["slo_tpot"]),
        "TANDEM_CONTROL_WINDOW_SECONDS": str(SLO["slo_window"]),
    }
    command = [sys.executable, "-m", "gateway"]
    with subprocess.Popen(
        command, env=os.environ | settings, stderr=subprocess.DEVNULL
    ) as process:
        try:
            yield
        finally:
            process.send_signal(signal.SIGTERM)


@asynccontextmanager
async def client_of(mesh: RunningMesh) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(mesh.url) as session:
        yield session


async def decisions(mesh: RunningMesh) -> list[dict[str, Any]]:
    """The newest first; none while the gateway is away."""
    try:
        async with (
            client_of(mesh) as client,
            client.get("/v1/pools/default/decisions") as answer,
        ):
            return list((await answer.json())["data"])
    except aiohttp.ClientError:
        return []


async def is_changed(mesh: RunningMesh) -> bool:
    """Ask something, and look whether the shares have followed."""
    await complete(mesh.url, prompt=[1], max_tokens=4)
    return bool(mesh.status()["pools"][0]["shares"]["prefill"] == LIMIT)


async def test_another_gateway_leads_when_the_leader_is_killed(
    mesh: RunningMesh,
) -> None:
    """
    One of two gateways decides; killed, it is followed by the other one or by its own
    successor, and then the shares change as they should.
    """
    with second_gateway(mesh):
        await wait_until(lambda: len(mesh.pids("gateway")) == 2, seconds=60)
        leader = (await wait_until(lambda: decisions(mesh)))[0]["leader"]
        (victim,) = [
            process["pid"]
            for process in mesh.status()["processes"]
            if process["worker_id"] == leader
        ]

        os.kill(victim, signal.SIGKILL)
        heir = await wait_until(lambda: led_by_another(mesh, leader), seconds=30)
        await wait_until(lambda: len(mesh.pids("gateway")) == 2, seconds=60)
        await wait_until(lambda: is_changed(mesh), seconds=30)

    changes = [d for d in await decisions(mesh) if d["before"] != d["shares"]]
    assert heir != leader
    assert changes[0]["reason"] == "ttft fails"
    assert changes[0]["seen_ttft_seconds"] > SLO["slo_ttft"]
    assert changes[0]["leader"] != leader


async def led_by_another(mesh: RunningMesh, leader: str) -> str:
    found = await decisions(mesh)
    return str(found[0]["leader"]) if found and found[0]["leader"] != leader else ""
