"""/live, /ready and /metrics over a real socket."""

import json
import socket

import aiohttp

from mesh import metrics
from mesh.health import health_server


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def get(port: int, path: str) -> tuple[int, str]:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{port}{path}") as response,
    ):
        return response.status, await response.text()


async def test_a_starting_service_is_live_but_not_ready() -> None:
    """
    /live answers from the start, /ready only once the service would do its work; other
    servers call that /health.
    """
    port, ready = free_port(), False
    async with health_server(port, lambda: ready):
        live, _ = await get(port, "/live")
        before, _ = await get(port, "/ready")
        ready = True
        after, _ = await get(port, "/ready")
        health, _ = await get(port, "/health")

    assert (live, before, after, health) == (200, 503, 200, 200)


async def test_a_ready_service_says_what_it_is() -> None:
    """
    Facts that probes and people read in one place are part of the answer.
    """
    port = free_port()

    async with health_server(port, lambda: True, lambda: {"sharing": "vmm"}):
        _, body = await get(port, "/health")

    assert json.loads(body) == {"status": "ready", "sharing": "vmm"}


async def test_metrics_are_in_prometheus_s_format() -> None:
    """
    /metrics names the mesh's metrics under one prefix.
    """
    port = free_port()
    metrics.NUM_REQUESTS_RUNNING.set(3)

    async with health_server(port, lambda: True):
        status, body = await get(port, "/metrics")

    assert status == 200
    assert "\ntandem_num_requests_running 3.0\n" in body


async def test_no_port_means_no_server() -> None:
    """
    A service without a health port listens nowhere.
    """
    async with health_server(0, lambda: True):
        pass
