"""`kill -9` while answers are streaming: clients see a pause, and the same tokens."""

import asyncio
import signal
from typing import Any

import pytest
from asking import complete, stream
from running import RunningMesh
from storm import LONG_PROMPTS, once_at, remember, signal_all, streamed, undisturbed

pytestmark = pytest.mark.chaos


async def test_a_killed_decode_worker(whole_mesh: RunningMesh) -> None:
    """
    With a second decode worker alive, the streams of the killed one continue there.
    """
    calm = await undisturbed(whole_mesh)
    victim = whole_mesh.pids("decode")[:1]

    wild = await streamed(whole_mesh, once_at(60, lambda: signal_all(victim)))

    remember("a killed decode worker", wild)
    assert wild == calm


async def test_all_decode_workers_killed(whole_mesh: RunningMesh) -> None:
    """
    With no decode worker left, the streams pause until one is back, and continue.
    """
    calm = await undisturbed(whole_mesh)
    victims = whole_mesh.pids("decode")

    wild = await streamed(whole_mesh, once_at(60, lambda: signal_all(victims)))

    remember("all decode workers killed", wild)
    assert wild == calm


async def test_prefill_workers_killed_before_the_first_token(
    whole_mesh: RunningMesh,
) -> None:
    """
    Prompts whose prefill workers are killed under them are answered all the same.
    """
    calm = await undisturbed(whole_mesh, LONG_PROMPTS)
    victims = whole_mesh.pids("prefill")
    # The first token of all: the other prompts are still being computed, or wait.
    kill_at_first = once_at(1, lambda: signal_all(victims))

    wild = await streamed(whole_mesh, kill_at_first, LONG_PROMPTS)

    remember("prefill workers killed before the first token", wild)
    assert wild == calm


async def test_a_drained_worker_hands_over(whole_mesh: RunningMesh) -> None:
    """
    SIGTERM parks a worker's sequences between two steps; others continue them.
    """
    calm = await undisturbed(whole_mesh)
    victim = whole_mesh.pids("decode")[:1]

    wild = await streamed(
        whole_mesh, once_at(60, lambda: signal_all(victim, signal.SIGTERM))
    )

    remember("a drained worker hands over", wild)
    assert wild == calm


async def test_sampled_output_survives_too(whole_mesh: RunningMesh) -> None:
    """
    A seeded sampled answer is the same whether or not its worker was killed.
    """
    asked = {"prompt": [1], "max_tokens": 150, "temperature": 1.0, "seed": 11}
    asked |= {"ignore_eos": True}
    calm = await stream(whole_mesh.url, **asked)
    victims = whole_mesh.pids("decode")

    wild = await stream(
        whole_mesh.url, once_at(40, lambda: signal_all(victims)), **asked
    )

    assert wild == calm


async def test_choices_survive_too(whole_mesh: RunningMesh) -> None:
    """
    Several answers share the blocks of their prompt; all go on when their worker dies.
    """
    timer = {"prompt": [1], "max_tokens": 150, "ignore_eos": True}
    asked: dict[str, Any] = {"prompt": [1, *range(300, 350)], "max_tokens": 150}
    asked |= {"n": 4, "best_of": 6, "temperature": 1.0, "seed": 5, "ignore_eos": True}
    calm = await complete(whole_mesh.url, **asked)
    victims = whole_mesh.pids("decode")

    wild, _ = await asyncio.gather(
        complete(whole_mesh.url, **asked),
        stream(whole_mesh.url, once_at(20, lambda: signal_all(victims)), **timer),
    )

    assert wild["choices"] == calm["choices"]


async def test_a_killed_store(whole_mesh: RunningMesh) -> None:
    """
    When the store dies its memory is gone: the answers are computed again up to where
    each client is, and go on there.
    """
    calm = await undisturbed(whole_mesh)
    victim = whole_mesh.pids("kvstore")

    wild = await streamed(whole_mesh, once_at(60, lambda: signal_all(victim)))

    remember("a killed store", wild)
    assert wild == calm


async def test_a_killed_stem(
    whole_mesh: RunningMesh, pytestconfig: pytest.Config
) -> None:
    """
    With the process that workers are forks of, all workers die; they are back with it.
    Workers on a GPU are nobody's forks.
    """
    if pytestconfig.getoption("--device") == "cuda":
        pytest.skip("no worker is a fork")
    calm = await undisturbed(whole_mesh)
    (victim,) = whole_mesh.children("worker.stem")

    wild = await streamed(whole_mesh, once_at(60, lambda: signal_all([victim])))

    remember("a killed stem", wild)
    assert wild == calm
    assert whole_mesh.children("worker.stem") != [victim]
