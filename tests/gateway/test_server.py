"""A gateway as a process: what it listens on, and what it says when it cannot."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import pytest
import uvloop
from aiohttp import web
from fake_pool import FakePool
from waiting import wait_until

from gateway.server import http_server, listening_socket
from gateway.settings import Settings
from mesh.errors import ConfigurationError

ROOTS = [str(Path(__file__).parents[2] / root) for root in ("libs", "services")]


@contextmanager
def gateway(*fds: int, **settings: str) -> Iterator[subprocess.Popen[str]]:
    """`python -m gateway` with these settings, killed at the end."""
    given = {f"TANDEM_{name.upper()}": value for name, value in settings.items()}
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(ROOTS), **given}
    with subprocess.Popen(
        [sys.executable, "-m", "gateway"],
        env=env,
        pass_fds=fds,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        process.kill()


def test_a_busy_port_is_one_line_and_exit_code_2() -> None:
    """Who cannot listen says where, before anything else takes time."""
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = str(busy.getsockname()[1])

        with gateway(port=port) as process:
            code = process.wait(timeout=20)
            assert process.stderr is not None
            lines = process.stderr.read().splitlines()

    assert code == 2
    assert lines[-1].startswith(f"gateway: cannot listen on 127.0.0.1:{port}")


async def test_a_process_serves_an_inherited_socket_until_told_to_stop(
    redis_url: str, stories: Path, pool: FakePool
) -> None:
    """On a socket that it was given it becomes ready, answers and ends with 0."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        settings = {"redis_url": redis_url, "model": str(stories)}
        fd, port = listener.fileno(), listener.getsockname()[1]
        with gateway(fd, listen_fd=str(fd), **settings) as process:
            async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client:

                async def is_ready() -> bool:
                    async with client.get("/ready") as response:
                        return response.status == 200

                await wait_until(is_ready, seconds=30)
                async with client.post("/v1/completions", json={"prompt": "a"}) as done:
                    status = done.status

            process.send_signal(signal.SIGTERM)
            code = process.wait(timeout=5)

    assert (status, code) == (200, 0)


def test_a_descriptor_that_is_no_socket_is_named() -> None:
    """A wrong descriptor is a configuration error."""
    with open(os.devnull) as file, pytest.raises(ConfigurationError, match="LISTEN_FD"):
        listening_socket(Settings(listen_fd=file.fileno()))


def test_connections_beyond_the_limit_are_answered_on_uvloop_too() -> None:
    """The loop that services run on has transports of its own kind."""

    async def overcrowd() -> bytes:
        settings = Settings(max_connections=1)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            async with http_server(web.Application(), settings, listener):
                _, first = await asyncio.open_connection("127.0.0.1", port)
                reader, second = await asyncio.open_connection("127.0.0.1", port)
                answer = await asyncio.wait_for(reader.read(), 5)
                first.close()
                second.close()
                return answer

    answer = uvloop.run(overcrowd())

    assert answer.startswith(b"HTTP/1.1 503 ")
