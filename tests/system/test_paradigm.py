"""A fused mesh, whose workers do both phases, beside one with a worker for each phase."""

import asyncio
import random
from collections.abc import Iterator
from itertools import count

import pytest
from asking import Streamed, complete, stream
from reference_model import ReferenceModel
from running import STORIES, RunningMesh, running_mesh
from storm import once_at
from waiting import wait_until

# Fewer tokens than most prompts have: they are computed beside others' tokens.
BUDGET = 48
OPTIONS = ["--served-model-name", "test", "--kv-blocks", "1024"]
OPTIONS += ["--check-seconds", "0.1", "--threads", "1"]
_salts = count()


@pytest.fixture(scope="module")
def fused(mesh: RunningMesh) -> Iterator[RunningMesh]:
    """Two workers, each with both phases and a small budget of tokens for a step."""
    options = ["--paradigm", "fused", "--decode", "2"]
    options += ["--max-num-batched-tokens", str(BUDGET), "--stem", str(mesh.stem)]
    with running_mesh(STORIES, *OPTIONS, *options) as running:
        yield running


def prompts(num_prompts: int) -> list[list[int]]:
    """Of up to three hundred tokens, cut from nowhere."""
    draw = random.Random(11)
    lengths = [draw.choice((3, 40, 100, 300)) for _ in range(num_prompts)]
    return [[1] + [draw.randrange(3, 512) for _ in range(n)] for n in lengths]


async def answers(mesh: RunningMesh, num_prompts: int = 16) -> list[list[int]]:
    """Of prompts asked at once; none shares blocks with an earlier call."""
    salt = f"run {next(_salts)}"
    asked = [
        stream(mesh.url, prompt=prompt, max_tokens=60, ignore_eos=True, cache_salt=salt)
        for prompt in prompts(num_prompts)
    ]
    return [answer.token_ids for answer in await asyncio.gather(*asked)]


async def test_fused_answers_like_semi(
    fused: RunningMesh, mesh: RunningMesh, reference: ReferenceModel
) -> None:
    """
    Whoever computes a prompt, and beside whatever, greedy answers are the same tokens,
    which are those of transformers.
    """
    semi = await answers(mesh)

    together = await answers(fused)

    assert together == semi
    assert together == [reference.greedy(prompt, 60) for prompt in prompts(16)]


async def test_every_worker_has_both_phases(fused: RunningMesh) -> None:
    """
    `tandem status` shows decode workers alone, and what each of them does.
    """
    processes = fused.status()["processes"]

    workers = [each for each in processes if each["service"] in ("prefill", "decode")]

    assert [worker["service"] for worker in workers] == ["decode", "decode"]
    assert {tuple(worker["phases"]) for worker in workers} == {("prefill", "decode")}


async def test_a_killed_worker_is_followed_by_another(fused: RunningMesh) -> None:
    """
    Killed while prompts and answers are under way, its sequences go on elsewhere with the
    same tokens, and another worker takes its place.
    """
    calm = await answers(fused)
    (victim, *_) = pids = fused.pids("decode")
    kill = once_at(5, lambda: fused.kill("decode"))
    salt = f"run {next(_salts)}"

    wild: list[Streamed] = await asyncio.gather(
        *(
            stream(
                fused.url,
                kill,
                prompt=prompt,
                max_tokens=60,
                ignore_eos=True,
                cache_salt=salt,
            )
            for prompt in prompts(16)
        )
    )

    assert [answer.token_ids for answer in wild] == calm
    await wait_until(lambda: len(fused.pids("decode")) == len(pids), seconds=60)
    assert victim not in fused.pids("decode")
    await wait_until(fused.is_idle)
    assert not fused.miscounts()


async def test_it_is_scaled(fused: RunningMesh) -> None:
    """
    One worker is left, which answers alone; then there are two again.
    """
    await wait_until(lambda: len(fused.pids("decode")) == 2, seconds=60)

    fused.scale(decode=1)
    num_left = len(fused.pids("decode"))
    answer = await complete(fused.url, prompt=[1], max_tokens=5)
    fused.scale(decode=2)

    assert num_left == 1
    assert len(answer["choices"][0]["token_ids"]) == 5
    await wait_until(lambda: len(fused.pids("decode")) == 2, seconds=60)
