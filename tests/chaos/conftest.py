"""A mesh that is whole before each test, and what happens to it meanwhile."""

from collections.abc import AsyncIterator

import pytest
from running import RunningMesh
from waiting import wait_until


@pytest.fixture
async def whole_mesh(mesh: RunningMesh) -> AsyncIterator[RunningMesh]:
    """All four workers are up before the test, and again before the next one."""
    await wait_until(mesh.is_whole, seconds=60)
    yield mesh
    await wait_until(mesh.is_whole, seconds=60)
    await wait_until(mesh.is_idle)
