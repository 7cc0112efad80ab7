"""Redis goes away in mid-sentence, and comes back with or without what it knew."""

import pytest
from redis import Redis
from running import RunningMesh
from storm import once_at, remember, signal_all, streamed, undisturbed

from tandem.rundir import address_of

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


async def test_redis_comes_back_with_its_data(whole_mesh: RunningMesh) -> None:
    """
    A Redis that saved everything before it went is a pause, and nothing else.
    """
    calm = await undisturbed(whole_mesh)
    victim = whole_mesh.redis_pid()
    address = address_of(whole_mesh.run_dir)

    def save_and_stop() -> None:
        with Redis.from_url(address.redis_url) as redis:
            redis.shutdown(save=True)

    try:
        wild = await streamed(whole_mesh, once_at(60, save_and_stop))
    finally:
        (address.sockets / "dump.rdb").unlink()  # the next one shall know nothing

    remember("redis comes back with its data", wild)
    assert wild == calm
    assert whole_mesh.redis_pid() != victim
