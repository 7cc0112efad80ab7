"""Everything at once: too few KV blocks for all, and workers that die."""

from collections.abc import AsyncIterator, Iterator

import pytest
from running import STORIES, RunningMesh, running_mesh
from storm import once_at, remember, signal_all, streamed, undisturbed
from waiting import wait_until

pytestmark = pytest.mark.chaos

# Each of 32 answers needs eight blocks in the end, and one to begin with.
NUM_BLOCKS = 96


@pytest.fixture(scope="module")
def small_mesh(mesh: RunningMesh) -> Iterator[RunningMesh]:
    options = ["--served-model-name", "test", "--prefill", "2", "--decode", "2"]
    options += ["--kv-blocks", str(NUM_BLOCKS), "--check-seconds", "0.1"]
    options += ["--stem", str(mesh.stem)]
    with running_mesh(STORIES, *options) as running:
        yield running


@pytest.fixture
async def tight_mesh(small_mesh: RunningMesh) -> AsyncIterator[RunningMesh]:
    await wait_until(small_mesh.is_whole, seconds=60)
    yield small_mesh
    await wait_until(small_mesh.is_idle)
    assert not small_mesh.miscounts()


@pytest.mark.parametrize("service", ["decode", "prefill"])
async def test_a_killed_worker_in_a_full_pool(
    whole_mesh: RunningMesh, tight_mesh: RunningMesh, service: str
) -> None:
    """
    Answers that had to give their blocks back are those of a mesh with room for all,
    also when a worker dies meanwhile.
    """
    calm = await undisturbed(whole_mesh)
    victim = tight_mesh.pids(service)[:1]

    wild = await streamed(tight_mesh, once_at(30, lambda: signal_all(victim)))

    remember(f"a killed {service} worker in a full pool", wild)
    assert wild == calm
