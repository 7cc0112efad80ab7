"""A sequence moves from one pool's store to another's; whatever fails, one of both has it."""

import asyncio
import os
import resource
import socket
from collections.abc import AsyncIterator, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import pytest
from jobs import FACTS, GEOMETRY, loaded_pool, prefill_job, step
from moving import (
    STORE,
    Prefill,
    bytes_of,
    fake_source,
    fetch,
    from_elsewhere,
    prefill_pool,
    store_of,
)
from owning import admitted, generated
from redis.asyncio import Redis
from structlog.testing import capture_logs
from waiting import wait_until

from kv.operations import Gone, Part, Queued, Record
from kv.transfer import Fetch, Line, Sending, Taken, called, decode_answer, decode_wish
from kvstore.announcer import Announcer
from kvstore.handoff import check_handoff
from kvstore.pool import Pool
from kvstore.receiver import Receiver
from kvstore.settings import Settings
from kvstore.store import Store
from kvstore.transport import LocalTransport
from mesh.errors import ConfigurationError
from mesh.streams import Consumer, send
from protocol import keys
from protocol.messages import DecodeJob, RequestId, TransferJob
from protocol.wire import encode

R1 = RequestId("r1")


@pytest.fixture
async def prefill() -> AsyncIterator[Prefill]:
    """A pool that computed a prompt, or will."""
    async with prefill_pool() as pool:
        yield pool


@pytest.fixture
def decode() -> Iterator[Pool]:
    """The pool that fetches it."""
    pool = loaded_pool(10)
    yield pool
    store_of(pool).check()


@pytest.fixture
async def source_lives(redis: Redis) -> None:
    """The source's heart beats."""
    await redis.set(keys.worker(STORE), b"")


def is_free(store: Store) -> bool:
    """Every block is free or cached."""
    return store.blocks.num_available == store.blocks.num_blocks


@contextmanager
def no_more_descriptors() -> Iterator[None]:
    """This process can open nothing."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def refusals(logs: list[MutableMapping[str, Any]]) -> list[Any]:
    return [log for log in logs if log["event"] == "transfer.not_accepted"]


async def test_a_sequence_moves(prefill: Prefill, decode: Pool, redis_url: str) -> None:
    """
    All that is known of it and all of its K/V is in the other pool, for a decode worker
    there; where it comes from its blocks are left to the prefix cache.
    """
    job = prefill.park(prefill_job("r1", num_tokens=6))
    sent = prefill.bytes_of(job)

    await fetch(decode, job, redis_url)

    store = store_of(decode)
    record = store.parked(R1)
    assert record
    assert bytes_of(decode, record) == sent
    assert (record.token_ids, record.num_computed_tokens) == ([1, 2, 3, 4, 5, 6, 50], 6)
    assert record.request.sampling == job.sequence.sampling
    assert list(store.announcements) == ["r1"]
    stream, announced = LocalTransport("d").announcement(record)
    assert (stream, type(announced)) == ("tandem:{d}:decode", DecodeJob)
    assert is_free(prefill.store)
    assert prefill.store.blocks.num_cached == 1


async def test_it_goes_on_like_any_other(
    prefill: Prefill, decode: Pool, redis_url: str
) -> None:
    """
    A decode worker adopts it with the next generation; at its end nothing is left.
    """
    job = prefill.park(prefill_job("r1", num_tokens=6))
    await fetch(decode, job, redis_url)
    store = store_of(decode)
    parked = store.parked(R1)
    assert parked

    record = store.adopt(R1, parked.generation, "w")

    assert isinstance(record, Record)
    assert record.generation > job.sequence.generation
    assert record.num_cached_tokens == 0
    store.detach("w")
    store.cancel(R1)
    assert is_free(store)


async def test_what_the_cache_has_is_not_sent(
    prefill: Prefill, decode: Pool, redis_url: str
) -> None:
    """
    The blocks of a prefix that came before are shared: only what differs is fetched.
    """
    await fetch(decode, prefill.park(prefill_job("r1", num_tokens=9)), redis_url)
    again = prefill.park(prefill_job("r2", num_tokens=12, like="r1"))
    spoilt = prefill.store.parked(RequestId("r2"))
    assert spoilt
    for block in spoilt.block_table[:2]:  # as if they were other bytes now
        view = prefill.pool.memory.block(block)
        view[:] = bytes(len(view))

    await fetch(decode, again, redis_url)

    first, second = map(store_of(decode).parked, ("r1", "r2"))
    assert first
    assert second
    assert first.block_table[:2] == second.block_table[:2]
    assert all(any(block) for block in bytes_of(decode, second)[:3])


async def test_a_full_pool_remembers_where_to_fetch(
    prefill: Prefill, decode: Pool, redis_url: str
) -> None:
    """
    Without room the sequence waits in line, and stays where it is; with room the pool
    announces it to itself, and fetches it.
    """
    store = store_of(decode)
    hog = admitted(store, prefill_job("hog", num_tokens=36, max_tokens=1), "w")
    job = prefill.park(prefill_job("r1", num_tokens=6))

    await fetch(decode, job, redis_url)
    is_waiting = store.num_waiting == 1 and prefill.store.num_parked == 1
    store.cancel(hog.request_id)
    store.detach("w")
    parked = store.parked(R1)
    assert parked
    stream, again = LocalTransport("d").announcement(parked)
    assert isinstance(again, TransferJob)
    await fetch(decode, again, redis_url)

    assert is_waiting
    assert stream == keys.transfers("d")
    assert again.source == job.source
    assert parked.transfer is None
    assert is_free(prefill.store)


async def test_one_that_never_fits_is_an_error_at_once(
    prefill: Prefill, redis_url: str
) -> None:
    """
    A pool that is too small says so to the client, and frees the source's blocks.
    """
    small = loaded_pool(1)
    job = prefill.park(prefill_job("r1", num_tokens=6))

    await fetch(small, job, redis_url)

    (failure,) = store_of(small).failures
    assert "never fit" in failure.reason
    assert is_free(prefill.store)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"geometry": GEOMETRY.changed(dtype="bfloat16")}, "KV blocks differ"),
        ({"facts": FACTS.changed(fingerprint="f2")}, "differ in model or dtype"),
    ],
)
async def test_pools_of_other_models_are_refused(
    prefill: Prefill, redis_url: str, changes: dict[str, object], reason: str
) -> None:
    """
    K/V that would mean something else is not taken; the client is told which differ.
    """
    other = loaded_pool(10, **changes)
    job = prefill.park(prefill_job("r1", num_tokens=6))

    await fetch(other, job, redis_url)

    (failure,) = store_of(other).failures
    assert reason in failure.reason
    assert is_free(store_of(other))
    assert is_free(prefill.store)


async def test_a_source_that_vanishes_while_it_sends(
    prefill: Prefill, decode: Pool, redis_url: str
) -> None:
    """
    With its source dead what was received is worth nothing: its gateway starts it again.
    """
    job = prefill.park(prefill_job("r1", num_tokens=6))

    async with fake_source(half_of_it) as address:
        await fetch(decode, from_elsewhere(job, address), redis_url)

    store = store_of(decode)
    assert is_free(store)
    assert isinstance(store.admit(prefill_job("r1"), "w"), Record)


@pytest.mark.usefixtures("source_lives")
async def test_a_broken_connection_is_tried_again(
    prefill: Prefill, decode: Pool, redis_url: str
) -> None:
    """
    A source that lives is asked again: the pool announces the fetch to itself.
    """
    job = prefill.park(prefill_job("r1", num_tokens=6))

    async with fake_source(half_of_it) as address:
        await fetch(decode, from_elsewhere(job, address), redis_url)

    parked = store_of(decode).parked(R1)
    assert parked
    stream, again = LocalTransport("d").announcement(parked)
    assert isinstance(again, TransferJob)
    assert list(store_of(decode).announcements) == ["r1"]
    assert stream == keys.transfers("d")
    assert again.source.address == address
    assert again.sequence.token_ids == job.sequence.token_ids


async def half_of_it(line: Line, connection: socket.socket) -> None:
    """A source that dies in the middle of a block."""
    wish = await line.hear(decode_wish)
    assert isinstance(wish, Fetch)
    await line.say(Sending(num_blocks=2))
    await line.send(memoryview(bytes(GEOMETRY.block_bytes * 3 // 2)))


async def test_a_receiver_that_vanishes(prefill: Prefill) -> None:
    """
    Until somebody else has it whole the source keeps it, and announces it again.
    """
    job = prefill.park(prefill_job("r1", num_tokens=6))
    async with called(job.source.address) as line:
        await line.say(wish(job))
        assert isinstance(await line.hear(decode_answer), Sending)
        is_owned = prefill.store.num_parked == 0

    await wait_until(lambda: prefill.store.num_parked)

    assert is_owned
    assert prefill.announced().source.generation == job.source.generation + 1


def wish(job: TransferJob) -> Fetch:
    return Fetch(
        request_id=job.sequence.request_id,
        attempt=job.sequence.attempt,
        generation=job.source.generation,
        fingerprint=FACTS.fingerprint,
        geometry=GEOMETRY,
        first_block=0,
    )


async def test_what_is_sent_stays_referenced(prefill: Prefill) -> None:
    """
    A cancel in the middle of a transfer frees the blocks after it, not under it.
    """
    job = prefill.park(prefill_job("r1", num_tokens=6))
    async with called(job.source.address) as line:
        await line.say(wish(job))
        await line.hear(decode_answer)

        prefill.store.cancel(R1)
        is_held = not is_free(prefill.store)

    await wait_until(lambda: is_free(prefill.store))
    assert is_held


async def test_a_store_without_descriptors_answers_later(
    prefill: Prefill, decode: Pool, redis_url: str
) -> None:
    """
    A connection that cannot be accepted ends nothing: it waits, and so does who asks.
    """
    job = prefill.park(prefill_job("r1", num_tokens=6))
    host, port = job.source.address.split(":")
    with socket.socket() as knocking, capture_logs() as logs:
        with no_more_descriptors():
            knocking.connect((host, int(port)))
            await wait_until(lambda: refusals(logs))

        await fetch(decode, job, redis_url)

    assert store_of(decode).parked(R1)


async def test_of_two_that_fetch_one_gets_it(prefill: Prefill) -> None:
    """
    A generation is sent once: who asks for one that moved on is told that it is gone.
    """
    job = prefill.park(prefill_job("r1", num_tokens=6))
    async with called(job.source.address) as first:
        await first.say(wish(job))
        await first.hear(decode_answer)
        async with called(job.source.address) as second:
            await second.say(wish(job))
            answer = await second.hear(decode_answer)

    assert answer.type == "gone"
    await wait_until(lambda: prefill.store.num_parked)


async def test_a_source_that_was_not_told_is_told_later(
    prefill: Prefill, decode: Pool, redis_url: str
) -> None:
    """
    When the last word is lost the source announces again what is here already: it is not
    fetched a second time, and freed there.
    """
    job = prefill.park(prefill_job("r1", num_tokens=6))

    async def all_of_it(line: Line, connection: socket.socket) -> None:
        await line.hear(decode_wish)
        await line.say(Sending(num_blocks=2))
        await line.send(memoryview(bytes(GEOMETRY.block_bytes * 2)))
        assert isinstance(await line.hear(decode_wish), Taken)

    async with fake_source(all_of_it) as address:
        await fetch(decode, from_elsewhere(job, address), redis_url)
    store = store_of(decode)
    is_here = store.parked(R1)

    await fetch(decode, job, redis_url)

    assert is_here
    assert is_here.generation == job.sequence.generation + 1
    assert list(store.announcements) == ["r1"]
    assert is_free(prefill.store)


async def test_a_gateway_that_moves_meanwhile_is_found(
    prefill: Prefill, decode: Pool, redis_url: str
) -> None:
    """
    Recalled in the middle of a transfer, the sequence is announced again by its source,
    and the pool that has it by then learns of the new address.
    """
    job = prefill.park(prefill_job("r1", num_tokens=6))
    moved = prefill_job("r1", num_tokens=6).changed(reply_to="g2", attempt=1)
    async with called(job.source.address) as line:
        await line.say(wish(job))
        await line.hear(decode_answer)
        prefill.store.admit(moved, "b")
        await line.receive(memoryview(bytearray(GEOMETRY.block_bytes * 2)))
        await line.say(
            Taken(request_id=R1, attempt=0, generation=job.source.generation)
        )
        await wait_until(lambda: prefill.store.num_parked)

    again = prefill.announced()
    await fetch(decode, again, redis_url)

    record = store_of(decode).parked(R1)
    assert record
    assert record.request.reply_to == "g2"


async def test_a_source_that_went_on_is_fetched_as_it_is(
    prefill: Prefill, decode: Pool, redis_url: str
) -> None:
    """
    While a sequence waits for room another worker of its pool may adopt it and compute a
    token: what waits is replaced by what there is.
    """
    store = store_of(decode)
    hog = admitted(store, prefill_job("hog", num_tokens=36, max_tokens=1), "w")
    await fetch(decode, prefill.park(prefill_job("r1", num_tokens=7)), redis_url)
    moved = prefill_job("r1", num_tokens=7).changed(reply_to="g2", attempt=1)
    record = prefill.store.admit(moved, "b")
    assert isinstance(record, Record)
    prefill.store.advance([step(record, 8, 51)], "b")
    prefill.store.detach("b")
    job = prefill.announced()
    sent = prefill.bytes_of(job)[:2]

    await fetch(decode, job, redis_url)
    store.cancel(hog.request_id)
    store.detach("w")
    parked = store.parked(R1)
    assert parked
    _, again = LocalTransport("d").announcement(parked)
    assert isinstance(again, TransferJob)
    await fetch(decode, again, redis_url)

    assert parked.token_ids[-2:] == [50, 51]
    assert parked.request.reply_to == "g2"
    assert parked.transfer is None
    assert bytes_of(decode, parked)[:2] == sent
    assert is_free(prefill.store)


async def test_a_request_that_ended_is_not_fetched(
    prefill: Prefill, decode: Pool, redis_url: str
) -> None:
    """
    What its client gave up is freed on both sides.
    """
    job = prefill.park(prefill_job("r1", num_tokens=6))
    store_of(decode).cancel(R1)

    await fetch(decode, job, redis_url)

    assert is_free(store_of(decode))
    assert is_free(prefill.store)


async def test_a_block_to_be_copied_is_sent_as_its_source(
    prefill: Prefill, decode: Pool, redis_url: str
) -> None:
    """
    A fork that nobody stepped has not copied its last block yet: its K/V is elsewhere.
    """
    tokens = prefill_job("r1", num_tokens=6).changed(num_prompt_tokens=5)
    store = prefill.store
    leader = admitted(store, tokens)
    assert isinstance(store.admit(tokens.changed(request_id="r2"), "a"), Queued)
    store.advance([step(leader, 6, 50)], "a")
    forked = store.parked(RequestId("r2"))
    assert forked
    assert forked.copies
    ((origin, _),) = forked.copies
    job = prefill.announced()

    await fetch(decode, job, redis_url)

    record = store_of(decode).parked(RequestId("r2"))
    assert record
    assert bytes_of(decode, record)[1] == bytes(prefill.pool.memory.block(origin))
    assert not record.copies


def test_carriers_neither_compute_nor_hang(decode: Pool) -> None:
    """
    Workers do not share their cores with who only moves K/V, and no lease ends it.
    """
    store = store_of(decode)
    generated(store, prefill_job("r1"), 1, "w")

    with store.carrying("c"):
        admitted(store, prefill_job("r2"), "c")
        part, owners = store.division.part("w"), store.owners

    assert (part, owners) == (Part(100, 1), ["w"])
    assert store.num_parked == 1


def test_nobody_waits_longer_than_its_client(decode: Pool) -> None:
    """
    Parked for a pool that does not come back, a sequence is dropped at its deadline.
    """
    store = store_of(decode)
    with store.carrying("c"):
        admitted(store, prefill_job("r1", deadline=1000.0), "c")

    store.drop_late(now=999.0)
    is_kept = store.num_parked == 1
    store.drop_late(now=1001.0)

    assert is_kept
    assert is_free(store)


async def test_what_nobody_fetched_is_announced_again(prefill: Prefill) -> None:
    """
    A store that heard of it may have died: a reminder repeats what the last one saw.
    """
    job = prefill.park(prefill_job("r1", num_tokens=6))

    prefill.store.remind()
    is_calm = not prefill.store.announcements
    prefill.store.remind()

    assert is_calm
    assert prefill.announced() == job


async def test_a_store_takes_over_what_its_predecessor_was_at(
    prefill: Prefill, decode: Pool, redis: Redis
) -> None:
    """
    A store died between reading a job and doing it: the next one does it at once.

    Nobody else would for half a minute, and the blocks at its source are held as long.
    """
    job = prefill.park(prefill_job("r1", num_tokens=6))
    stream = keys.transfers(decode.name)
    dead = Consumer(redis, stream, keys.GROUP_OF_TRANSFERS, "dead")
    await send(redis, stream, {"body": encode(job)})
    await dead.join()
    assert await dead.take(8, block_seconds=0.01)
    stopping = asyncio.Event()
    receiver = Receiver(redis, decode, Announcer(redis, decode), "heir")

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(receiver.run(stopping))
        await wait_until(lambda: is_free(prefill.store))
        stopping.set()

    assert store_of(decode).parked(R1)


async def test_what_moved_on_does_not_begin_anew(
    prefill: Prefill, decode: Pool, redis_url: str
) -> None:
    """
    The job of a request that is elsewhere by now is late; only a later attempt starts it
    again, and nobody takes one for the other.
    """
    first = prefill.park(prefill_job("r1", num_tokens=6))
    await fetch(decode, first, redis_url)

    late = prefill.store.admit(prefill_job("r1", num_tokens=6), "b")
    again = prefill.park(prefill_job("r1", num_tokens=6).changed(attempt=1))

    assert late == Gone()
    assert again.source == first.source
    async with called(first.source.address) as line:
        await line.say(wish(first))
        assert await line.hear(decode_answer) == Gone()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"device": "cuda", "handoff_pool": "d"}, "host's memory only"),
        ({"pool": "d", "handoff_pool": "d"}, "this pool itself"),
    ],
)
def test_impossible_handoffs_are_wrong_settings(
    settings: dict[str, str], reason: str
) -> None:
    """
    A store that could not do what it is told says so at its start.
    """
    with pytest.raises(ConfigurationError, match=reason):
        check_handoff(Settings(**settings))
