"""The store's socket, from a worker's side: real sockets and real shared memory."""

import asyncio
import itertools
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest
from jobs import FACTS, LOAD, held, prefill_job, step
from waiting import wait_until

from kv.client import Attachment, StoreClient
from kv.errors import Refused, StoreLost
from kv.frames import framed, receive_frame
from kv.operations import Gone, Loading, LoadWanted, Record, Stats
from kvstore.memory import PoolMemory
from kvstore.pool import Pool
from kvstore.server import serve_pool
from mesh.errors import ConfigurationError
from protocol.messages import RequestId
from protocol.wire import encode


@pytest.fixture
async def pool(tmp_path: Path) -> AsyncIterator[Pool]:
    """A store that listens at tmp_path/s."""
    pool = Pool("p", PoolMemory(10, block_size=4, max_model_len=0), max_waiting=10)
    async with serve_pool(tmp_path / "s", pool, lambda: None):
        yield pool
    if pool.store:
        pool.store.check()


async def connected(tmp_path: Path) -> StoreClient:
    return await asyncio.to_thread(StoreClient, tmp_path / "s")


async def load(tmp_path: Path) -> None:
    """Fill the weights with the bytes 0 to 31."""

    def fill() -> None:
        with closing(StoreClient(tmp_path / "s")) as loader:
            with closing(loader.begin_load(LOAD)) as weights:
                weights.view[:32] = bytes(range(32))
            loader.commit_load()

    await asyncio.to_thread(fill)


async def attached(tmp_path: Path) -> tuple[StoreClient, Attachment]:
    client = await connected(tmp_path)
    answer = await asyncio.to_thread(client.attach, "w", FACTS.fingerprint)
    assert isinstance(answer, Attachment)
    return client, answer


async def test_workers_see_the_loader_s_weights(pool: Pool, tmp_path: Path) -> None:
    """
    What the loader wrote is what every worker reads, without a copy of its own.
    """
    await load(tmp_path)

    client, attachment = await attached(tmp_path)

    assert bytes(attachment.weights.view[:32]) == bytes(range(32))
    client.close()


async def test_a_worker_cannot_write_weights(pool: Pool, tmp_path: Path) -> None:
    """
    A worker's mapping of the weights is read-only.
    """
    await load(tmp_path)
    client, attachment = await attached(tmp_path)

    with pytest.raises(TypeError, match="read-only"):
        attachment.weights.view[0] = 1

    client.close()


async def test_blocks_are_shared_between_workers(pool: Pool, tmp_path: Path) -> None:
    """
    K/V that one worker writes is there for the next one to read.
    """
    await load(tmp_path)
    writer_client, writer = await attached(tmp_path)
    reader_client, reader = await attached(tmp_path)

    writer.blocks.view[100:104] = b"\x01\x02\x03\x04"

    assert bytes(reader.blocks.view[100:104]) == b"\x01\x02\x03\x04"
    writer_client.close()
    reader_client.close()


async def test_an_empty_store_asks_for_a_load(pool: Pool, tmp_path: Path) -> None:
    """
    The first worker is asked to load, the next ones to wait.
    """
    first, second = await connected(tmp_path), await connected(tmp_path)

    wanted = await asyncio.to_thread(first.attach, "a", FACTS.fingerprint)
    loading = await asyncio.to_thread(second.attach, "b", FACTS.fingerprint)

    assert isinstance(wanted, LoadWanted)
    assert isinstance(loading, Loading)
    first.close()
    second.close()


async def test_another_model_is_refused(pool: Pool, tmp_path: Path) -> None:
    """
    A worker with another model gets an error that names both.
    """
    await load(tmp_path)
    client = await connected(tmp_path)

    with pytest.raises(Refused, match="another model"):
        await asyncio.to_thread(client.attach, "a", "other")

    client.close()


async def test_a_request_s_life_at_the_store(pool: Pool, tmp_path: Path) -> None:
    """
    admit, advance, park, adopt, advance, release: and every block is free again.
    """
    await load(tmp_path)

    def life() -> Record:
        with closing(StoreClient(tmp_path / "s")) as prefill:
            record = prefill.admit(prefill_job(num_tokens=6))
            assert isinstance(record, Record)
            prefill.advance([step(record, 6, 50)])
            prefill.park([held(record)])
            with closing(StoreClient(tmp_path / "s")) as decode:
                adopted = decode.adopt(record.request_id, record.generation)
                assert isinstance(adopted, Record)
                decode.advance([step(adopted, 7, 51)])
                decode.release([held(adopted)])
                return adopted

    adopted = await asyncio.to_thread(life)

    assert adopted.token_ids == (1, 2, 3, 4, 5, 6, 50)
    assert pool.store
    assert pool.store.blocks.num_available == 10


async def test_a_closed_connection_parks(pool: Pool, tmp_path: Path) -> None:
    """
    When a worker's connection closes, what it held is announced without any delay.
    """
    await load(tmp_path)
    client = await connected(tmp_path)
    await asyncio.to_thread(client.admit, prefill_job())
    store = pool.store
    assert store

    client.close()

    await wait_until(lambda: list(store.announcements) == ["r1"])


async def test_cancel_reaches_the_store(pool: Pool, tmp_path: Path) -> None:
    """
    A worker may cancel a request that it does not hold.
    """
    await load(tmp_path)
    client = await connected(tmp_path)

    await asyncio.to_thread(client.cancel, RequestId("r1"))
    answer = await asyncio.to_thread(client.admit, prefill_job())

    assert isinstance(answer, Gone)
    client.close()


async def test_stats_count_every_block(pool: Pool, tmp_path: Path) -> None:
    """
    The states of blocks add up to all of them.
    """
    await load(tmp_path)
    client = await connected(tmp_path)
    await asyncio.to_thread(client.admit, prefill_job(num_tokens=6))

    stats = await asyncio.to_thread(client.stats)

    assert (stats.total, stats.free, stats.referenced) == (10, 8, 2)
    client.close()


async def test_nothing_works_before_a_model_is_loaded(
    pool: Pool, tmp_path: Path
) -> None:
    """
    Sequences need blocks, and blocks need a model: until then the store refuses.
    """
    client = await connected(tmp_path)

    with pytest.raises(Refused, match="no model is loaded"):
        await asyncio.to_thread(client.admit, prefill_job())

    client.close()


async def test_a_malformed_frame_ends_only_its_connection(
    pool: Pool, tmp_path: Path
) -> None:
    """
    A peer that talks nonsense is told so and hung up on; the others notice nothing.
    """
    await load(tmp_path)

    def nonsense() -> bytes:
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(str(tmp_path / "s"))
            peer.settimeout(5)
            peer.sendall(framed(b"\xc1 nonsense"))
            answer = receive_frame(peer)
            with pytest.raises(StoreLost):
                receive_frame(peer)
            return answer

    answer = await asyncio.to_thread(nonsense)

    assert b"refused" in answer
    client, _ = await attached(tmp_path)
    client.close()


async def test_who_does_not_read_is_not_answered_further(
    pool: Pool, tmp_path: Path
) -> None:
    """
    Answers that a peer leaves unread do not pile up in the store; once it reads, it gets
    one for each question.
    """
    await load(tmp_path)
    question = framed(encode(Stats()))
    numbers = itertools.count()

    def flood(peer: socket.socket) -> None:
        for _ in numbers:
            peer.sendall(question)

    def ask() -> int:
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(str(tmp_path / "s"))
            peer.settimeout(0.5)
            with pytest.raises(TimeoutError):
                flood(peer)
            num_asked = next(numbers) - 1
            answers = [receive_frame(peer) for _ in range(num_asked)]
            return num_asked - sum(b"referenced" in answer for answer in answers)

    assert await asyncio.to_thread(ask) == 0
    client, _ = await attached(tmp_path)
    client.close()


async def test_an_absurd_length_is_refused(pool: Pool, tmp_path: Path) -> None:
    """
    The store never makes room for a frame of gigabytes.
    """

    def announce() -> bytes:
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(str(tmp_path / "s"))
            peer.settimeout(5)
            peer.sendall(struct.pack("<I", 1 << 31))
            return receive_frame(peer)

    answer = await asyncio.to_thread(announce)

    assert b"a frame of" in answer


async def test_a_store_that_is_not_there_is_named(tmp_path: Path) -> None:
    """
    Connecting to nobody is an error with the path in it.
    """
    with pytest.raises(StoreLost, match="no store at"):
        StoreClient(tmp_path / "nobody")


async def test_a_silent_store_is_given_up(tmp_path: Path) -> None:
    """
    A store that does not answer in time is a lost store: no call waits for ever.
    """
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        client = StoreClient(tmp_path / "s", answer_seconds=0.05)

        with pytest.raises(StoreLost, match="does not answer"):
            client.stats()

        client.close()


async def test_an_idle_worker_notices_that_the_store_is_gone(tmp_path: Path) -> None:
    """
    A worker that has nothing to ask can still find out that nobody would answer.
    """
    pool = Pool("p", PoolMemory(1, block_size=4, max_model_len=0), max_waiting=1)
    async with serve_pool(tmp_path / "s", pool, lambda: None):
        client = await connected(tmp_path)
        client.check()

    with pytest.raises(StoreLost, match="closed the connection"):
        client.check()

    client.close()


async def test_the_socket_is_for_its_own_user_and_group(
    pool: Pool, tmp_path: Path
) -> None:
    """
    Whoever can connect can read every sequence: others cannot connect.
    """
    mode = (tmp_path / "s").stat().st_mode

    assert mode & 0o007 == 0


async def test_an_impossible_path_is_a_configuration_error(tmp_path: Path) -> None:
    """
    A socket path that cannot be bound stops the service with its reason.
    """
    pool = Pool("p", PoolMemory(1, block_size=4, max_model_len=0), max_waiting=1)

    with pytest.raises(ConfigurationError, match="cannot listen"):
        async with serve_pool(tmp_path / ("x" * 120), pool, lambda: None):
            pass
