"""`kill -9` of stores between which sequences move: answers go on as continuations."""

import asyncio
from collections.abc import Callable, Iterator

import pytest
from asking import stream
from running import STORIES, RunningMesh, running_mesh
from storm import once_at, signal_all
from waiting import wait_until

pytestmark = pytest.mark.chaos

NUM_STREAMS = 16
NUM_TOKENS = 200
VOCAB_SIZE = 512
OPTIONS = ["--engine", "counting", "--paradigm", "disaggregated", "--decode", "2"]
OPTIONS += ["--kv-blocks", "512", "--check-seconds", "0.1"]


@pytest.fixture(scope="module")
def disaggregated() -> Iterator[RunningMesh]:
    """Two pools whose engines count upwards: a store that died is soon back."""
    with running_mesh(STORIES, "--served-model-name", "test", *OPTIONS) as running:
        yield running


def stores(mesh: RunningMesh, pool: str) -> list[int]:
    """The store of a pool, while it lives."""
    return [
        process["pid"]
        for process in mesh.status()["processes"]
        if process["service"] == "kvstore" and process["pool"] == pool
    ]


def is_whole(mesh: RunningMesh) -> bool:
    """Both pools have their model, and their workers."""
    workers = len(mesh.pids("prefill")), len(mesh.pids("decode"))
    return len(mesh.status()["pools"]) == 2 and workers == (1, 2)


def counted(number: int) -> list[int]:
    """The whole answer to a prompt that ends with this token."""
    return [(number + 1 + index) % VOCAB_SIZE for index in range(NUM_TOKENS)]


async def answers(mesh: RunningMesh, kill: Callable[[int], None]) -> list[list[int]]:
    """Of prompts of different lengths, asked at once while something is killed."""
    asked = [
        stream(
            mesh.url,
            kill,
            prompt=[*range(3, 3 + 10 * number), number],
            max_tokens=NUM_TOKENS,
            ignore_eos=True,
        )
        for number in range(NUM_STREAMS)
    ]
    return [answer.token_ids for answer in await asyncio.gather(*asked)]


@pytest.mark.parametrize("num_tokens", [1, NUM_TOKENS // 2])
@pytest.mark.parametrize("pool", ["default", "default-decode"])
async def test_a_killed_store(
    disaggregated: RunningMesh, pool: str, num_tokens: int
) -> None:
    """
    Whichever of both pools loses its memory, in the middle of transfers or of answers,
    each client gets its whole answer, and in the end no block is held anywhere.
    """
    await wait_until(lambda: is_whole(disaggregated), seconds=60)
    victims = stores(disaggregated, pool)
    kill = once_at(num_tokens, lambda: signal_all(victims))

    wild = await answers(disaggregated, kill)

    assert wild == list(map(counted, range(NUM_STREAMS)))
    await wait_until(lambda: stores(disaggregated, pool) not in ([], victims))
    await wait_until(lambda: is_whole(disaggregated), seconds=60)
    await wait_until(disaggregated.is_idle)
    assert not disaggregated.miscounts()


async def test_a_killed_decode_worker(disaggregated: RunningMesh) -> None:
    """
    Moved sequences are like any others: another worker of their pool goes on with them.
    """
    await wait_until(lambda: is_whole(disaggregated), seconds=60)
    victims = disaggregated.pids("decode")[:1]
    kill = once_at(NUM_TOKENS // 2, lambda: signal_all(victims))

    wild = await answers(disaggregated, kill)

    assert wild == list(map(counted, range(NUM_STREAMS)))
    await wait_until(disaggregated.is_idle)
    assert not disaggregated.miscounts()
