"""Redis streams as the mesh uses them, on a real Redis."""

import asyncio

import pytest
from redis.asyncio import Redis
from waiting import wait_until

from mesh.streams import Consumer, Letter, Mailbox, Tail, post, send, send_all


@pytest.fixture
async def consumers(redis: Redis) -> tuple[Consumer, Consumer]:
    """Two members of one group."""
    one, two = (Consumer(redis, "jobs", "group", name) for name in ("one", "two"))
    await one.join()
    await two.join()
    return one, two


async def test_an_entry_goes_to_one_consumer(
    redis: Redis, consumers: tuple[Consumer, Consumer]
) -> None:
    """
    Of a group's consumers exactly one gets each entry.
    """
    one, two = consumers
    await send(redis, "jobs", {"body": b"1"})

    first = await one.take(10, block_seconds=0.01)
    second = await two.take(10, block_seconds=0.01)

    assert [entry.fields for entry in first] == [{b"body": b"1"}]
    assert second == []


async def test_no_more_is_taken_than_asked_for(
    redis: Redis, consumers: tuple[Consumer, Consumer]
) -> None:
    """
    A consumer with three free slots leaves the fourth entry to others.
    """
    one, two = consumers
    await send_all(redis, [Letter("jobs", {"n": str(n)}) for n in range(4)])

    taken = await one.take(3, block_seconds=0.01)
    left = await two.take(3, block_seconds=0.01)

    assert (len(taken), len(left)) == (3, 1)


async def test_what_was_sent_before_the_group_counts(redis: Redis) -> None:
    """
    Jobs that came before the first worker are not lost.
    """
    await send(redis, "jobs", {"body": b"early"})
    consumer = Consumer(redis, "jobs", "group", "one")

    await consumer.join()

    assert len(await consumer.take(1, block_seconds=0.01)) == 1


async def test_acknowledged_entries_leave_the_stream(
    redis: Redis, consumers: tuple[Consumer, Consumer]
) -> None:
    """
    A stream's length is its backlog: what is done is not kept.
    """
    one, _ = consumers
    await send_all(redis, [Letter("jobs", {"n": str(n)}) for n in range(3)])
    taken = await one.take(2, block_seconds=0.01)

    await one.acknowledge(taken)

    assert await redis.xlen("jobs") == 1


async def test_an_abandoned_entry_is_taken_over(
    redis: Redis, consumers: tuple[Consumer, Consumer]
) -> None:
    """
    An entry whose consumer vanished goes to the next one, unchanged and counted.
    """
    one, two = consumers
    await send(redis, "jobs", {"body": b"1"})
    await one.take(1, block_seconds=0.01)

    (entry,) = await wait_until(lambda: two.take_over(1, idle_seconds=0.02))

    assert entry.fields == {b"body": b"1"}
    assert entry.deliveries == 2


async def test_a_held_entry_is_left_alone(
    redis: Redis, consumers: tuple[Consumer, Consumer]
) -> None:
    """
    Before its lease is over nobody takes an entry away from its consumer.
    """
    one, two = consumers
    await send(redis, "jobs", {"body": b"1"})
    await one.take(1, block_seconds=0.01)

    taken = await two.take_over(1, idle_seconds=60)

    assert taken == []


async def test_an_entry_is_kept_for_as_long_as_its_consumer_says_so(
    redis: Redis, consumers: tuple[Consumer, Consumer]
) -> None:
    """
    That is no delivery: whoever has it at last counts as if it had not been kept.
    """
    one, two = consumers
    await send(redis, "jobs", {"body": b"1"})
    kept = await one.take(1, block_seconds=0.01)
    await asyncio.sleep(1.0)

    await one.keep(kept)
    taken = await two.take_over(1, idle_seconds=1.0)
    (entry,) = await wait_until(lambda: two.take_over(1, idle_seconds=1.0))

    assert taken == []
    assert entry.deliveries == 2


async def test_what_is_done_is_not_kept(
    redis: Redis, consumers: tuple[Consumer, Consumer]
) -> None:
    """
    An entry that was acknowledged meanwhile stays gone, and so does one that was lost.
    """
    one, two = consumers
    await send(redis, "jobs", {"body": b"1"})
    entries = await one.take(1, block_seconds=0.01)
    await one.acknowledge(entries)

    await one.keep(entries)

    assert await two.take_over(1, idle_seconds=0) == []
    await redis.flushall()
    await one.keep(entries)
    assert not await redis.exists("jobs")


async def test_a_buried_entry_is_kept_with_its_reason(
    redis: Redis, consumers: tuple[Consumer, Consumer]
) -> None:
    """
    A dead letter says what it was, where it lay and why nobody could do it.
    """
    one, _ = consumers
    await send(redis, "jobs", {"body": b"?"})
    (entry,) = await one.take(1, block_seconds=0.01)

    await one.bury(entry, "no such job", "graveyard")

    ((_, letter),) = await redis.xrange("graveyard")
    assert letter[b"reason"] == b"no such job"
    assert letter[b"stream"] == b"jobs"
    assert await redis.xlen("jobs") == 0


async def test_a_consumer_survives_the_loss_of_all_data(
    redis: Redis, consumers: tuple[Consumer, Consumer]
) -> None:
    """
    When Redis comes back empty, the group is made anew and new entries are read.
    """
    one, _ = consumers
    await redis.flushall()

    nothing = await one.take(1, block_seconds=0.01)
    assert await one.take_over(1, idle_seconds=0) == []
    await send(redis, "jobs", {"body": b"after"})

    assert nothing == []
    assert len(await one.take(1, block_seconds=0.01)) == 1


async def test_leaving_removes_the_consumer_unless_it_holds_something(
    redis: Redis, consumers: tuple[Consumer, Consumer]
) -> None:
    """
    A consumer that stops is forgotten; what it still held stays claimable.
    """
    one, two = consumers
    await send(redis, "jobs", {"body": b"1"})
    await one.take(1, block_seconds=0.01)
    await two.take(1, block_seconds=0.01)

    await one.leave()
    await two.leave()

    names = [row["name"] for row in await redis.xinfo_consumers("jobs", "group")]
    assert names == [b"one"]


async def test_a_mailbox_is_read_in_order_and_once(redis: Redis) -> None:
    """
    Each letter reaches the mailbox's reader once, in the order of posting.
    """
    mailbox = Mailbox(redis, "box", str, lease_seconds=5)
    await mailbox.open()
    for number in range(3):
        await post(redis, {"box": {"n": str(number)}})

    read = [e.fields[b"n"] for e in await mailbox.read(10) if b"n" in e.fields]

    assert read == [b"0", b"1", b"2"]


async def test_letters_to_the_dead_are_refused(redis: Redis) -> None:
    """
    Posting to a mailbox whose reader is gone makes no new stream, and says so.
    """
    mailbox = Mailbox(redis, "box", str, lease_seconds=5)
    await mailbox.open()

    gone = await post(redis, {"box": {"n": "1"}, "nobody": {"n": "1"}})

    assert gone == {"nobody"}
    assert not await redis.exists("nobody")


async def test_a_mailbox_ends_with_its_lease(redis: Redis) -> None:
    """
    A reader that died without a word is known to be gone after one lease.
    """
    mailbox = Mailbox(redis, "box", str, lease_seconds=0.05)
    await mailbox.open()

    async def is_gone() -> bool:
        return not await redis.exists("box")

    await wait_until(is_gone)

    assert await post(redis, {"box": {"n": "1"}}) == {"box"}


async def test_a_mailbox_does_not_keep_what_was_read(redis: Redis) -> None:
    """
    A renewal throws away what its reader has, and nothing of what it has not.
    """
    mailbox = Mailbox(redis, "box", str, lease_seconds=5)
    await mailbox.open()
    for number in range(300):
        await post(redis, {"box": {"n": str(number)}})
    await mailbox.read(251)  # the mark that it starts with, and 250 letters

    await mailbox.renew()

    kept = await redis.xlen("box")
    rest = await mailbox.read(1000)
    assert kept < 200
    assert [entry.fields[b"n"] for entry in rest] == [
        b"%d" % n for n in range(250, 300)
    ]


async def test_a_lost_mailbox_opens_under_another_name(redis: Redis) -> None:
    """
    Who still posts to the mailbox that Redis lost is told that nobody is there.
    """
    mailbox = Mailbox(redis, "box", str, lease_seconds=5)
    await mailbox.renew()
    await redis.flushall()

    is_kept = await mailbox.renew()

    assert not is_kept
    gone = await post(redis, {"box": {"n": "1"}, mailbox.name: {"n": "2"}})
    assert gone == {"box"}
    assert [e.fields[b"n"] for e in await mailbox.read(9) if b"n" in e.fields] == [b"2"]


async def test_a_tail_misses_nothing_between_two_reads(redis: Redis) -> None:
    """
    A tail starts after what is there, and then sees every entry, however it is read.
    """
    await send(redis, "control", {"n": "old"})
    tail = Tail(redis, "control")
    reading = asyncio.create_task(tail.read(1), name="first read")
    await wait_until(lambda: blocked_clients(redis))
    await send(redis, "control", {"n": "1"})
    first = await reading
    await send(redis, "control", {"n": "2"})

    second = await tail.read(10)

    assert [entry.fields[b"n"] for entry in first + second] == [b"1", b"2"]


async def blocked_clients(redis: Redis) -> int:
    return int((await redis.info("clients"))["blocked_clients"])
