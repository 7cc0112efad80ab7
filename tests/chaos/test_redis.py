"""Redis goes away in mid-sentence, and comes back without anything that it knew."""

import pytest
from running import RunningMesh
from storm import once_at, remember, signal_all, streamed, undisturbed

pytestmark = pytest.mark.chaos


async def test_redis_comes_back_empty(whole_mesh: RunningMesh) -> None:
    """
    The embedded Redis keeps nothing: jobs, mailboxes and heartbeats are gone with it.
    The answers pause, and go on with the next token.
    """
    calm = await undisturbed(whole_mesh)
    victim = whole_mesh.redis_pid()

    wild = await streamed(whole_mesh, once_at(60, lambda: signal_all([victim])))

    remember("redis comes back empty", wild)
    assert wild == calm
    assert whole_mesh.redis_pid() != victim
