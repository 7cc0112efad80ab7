"""The connection between a worker and the store breaks, and both of them live."""

import psutil
import pytest
from cutting import cut
from running import RunningMesh
from storm import once_at, remember, streamed, undisturbed
from waiting import wait_until

from tandem.rundir import address_of

pytestmark = pytest.mark.chaos


async def test_a_cut_connection(whole_mesh: RunningMesh) -> None:
    """
    Its sequences are parked as if the worker had died, and others continue them.
    """
    calm = await undisturbed(whole_mesh)
    store = address_of(whole_mesh.run_dir).sockets / "kvstore.sock"
    (server,), (worker, _) = whole_mesh.pids("kvstore"), whole_mesh.pids("decode")

    wild = await streamed(whole_mesh, once_at(60, lambda: cut(server, store, worker)))

    remember("a cut connection", wild)
    assert wild == calm
    await wait_until(lambda: not psutil.pid_exists(worker), seconds=10)
