"""Who leads, on a real Redis."""

from redis.asyncio import Redis
from waiting import wait_until

from mesh.leader import Leadership

LONG_SECONDS, SHORT_SECONDS = 60.0, 0.05


async def test_one_leads_at_a_time(redis: Redis) -> None:
    """
    Who has the lease keeps it as long as it renews; the others hear that they do not.
    """
    one, other = (Leadership(redis, "lead", name, LONG_SECONDS) for name in "ab")

    led = [await each.hold() for each in (one, other, one, other)]

    assert led == [True, False, True, False]


async def test_a_leader_that_goes_makes_way_at_once(redis: Redis) -> None:
    """
    Letting go is the leader's alone: of another one it takes nothing.
    """
    one, other = (Leadership(redis, "lead", name, LONG_SECONDS) for name in "ab")
    await one.hold()

    await other.let_go()
    still = await other.hold()
    await one.let_go()

    assert not still
    assert await other.hold()


async def test_a_leader_that_died_is_followed(redis: Redis) -> None:
    """
    Without renewal the lease ends by itself, and the next one leads.
    """
    dead = Leadership(redis, "lead", "dead", SHORT_SECONDS)
    heir = Leadership(redis, "lead", "heir", LONG_SECONDS)
    await dead.hold()

    await wait_until(heir.hold)

    assert not await dead.hold()
