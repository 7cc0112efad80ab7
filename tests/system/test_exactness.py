"""Served output is what transformers computes, token for token."""

import asyncio
import random

import pytest
from asking import complete, stream
from reference_model import ReferenceModel
from running import RunningMesh
from waiting import wait_until

GOLDEN = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside "
    "in the park. One day, she saw a big, red ball."
)
BOS = 1


def prompts(count: int, seed: int = 0) -> list[list[int]]:
    """Prompts of one to two hundred tokens, cut from nowhere."""
    draw = random.Random(seed)
    lengths = [draw.choice((1, 2, 7, 16, 17, 33, 90, 200)) for _ in range(count)]
    return [[BOS] + [draw.randrange(3, 512) for _ in range(n)] for n in lengths]


async def test_the_model_s_published_text(mesh: RunningMesh) -> None:
    """
    From the beginning-of-sequence token alone comes the story its authors published.
    """
    answer = await complete(mesh.url, prompt=[BOS], max_tokens=60)

    assert answer["choices"][0]["text"].startswith(GOLDEN)


async def test_prompts_alone(mesh: RunningMesh, reference: ReferenceModel) -> None:
    """
    Each of twenty prompts, asked alone, gets exactly the tokens of `generate`.
    """
    for prompt in prompts(20):
        answer = await complete(mesh.url, prompt=prompt, max_tokens=24)

        assert answer["choices"][0]["token_ids"] == reference.greedy(prompt, 24)


async def test_prompts_together(mesh: RunningMesh, reference: ReferenceModel) -> None:
    """
    Twenty prompts at once get the same tokens as each would alone.
    """
    together = prompts(20, seed=1)

    answers = await asyncio.gather(
        *(stream(mesh.url, prompt=prompt, max_tokens=40) for prompt in together)
    )

    for prompt, answer in zip(together, answers, strict=True):
        assert answer.token_ids == reference.greedy(prompt, 40)


async def test_a_seed_is_a_promise(mesh: RunningMesh) -> None:
    """
    A seeded request gets the same tokens alone and among many others.
    """
    asked = {"prompt": [BOS], "max_tokens": 60, "temperature": 1.0, "seed": 7}
    alone = await stream(mesh.url, **asked)

    others = [
        stream(mesh.url, prompt=prompt, max_tokens=60, temperature=1.0, seed=index)
        for index, prompt in enumerate(prompts(15, seed=2))
    ]
    among, *_ = await asyncio.gather(stream(mesh.url, **asked), *others)

    assert among.token_ids == alone.token_ids


async def test_two_seeds_differ(mesh: RunningMesh) -> None:
    """
    Sampling is sampling: another seed tells another story.
    """
    one, two = await asyncio.gather(
        *(
            stream(mesh.url, prompt=[BOS], max_tokens=40, temperature=1.0, seed=seed)
            for seed in (1, 2)
        )
    )

    assert one.token_ids != two.token_ids


@pytest.mark.parametrize("restriction", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}])
async def test_one_candidate_leaves_no_choice(
    mesh: RunningMesh, restriction: dict[str, float]
) -> None:
    """
    A restriction that leaves only the likeliest token makes sampling greedy.
    """
    asked = {"prompt": [BOS], "max_tokens": 30}
    greedy = await stream(mesh.url, **asked)

    sampled = await stream(mesh.url, temperature=1.0, seed=3, **asked, **restriction)

    assert sampled.token_ids == greedy.token_ids


async def test_two_hundred_streams(mesh: RunningMesh) -> None:
    """
    Two hundred concurrent streams of mixed lengths all complete, none mixed up with
    another, and every block is free or cached afterwards.
    """
    draw = random.Random(3)
    asked = [
        {"prompt": prompt, "max_tokens": draw.randrange(1, 60)}
        for prompt in prompts(40, seed=4)
    ]
    alone = [await complete(mesh.url, **request) for request in asked]

    together = await asyncio.gather(*(stream(mesh.url, **r) for r in asked * 5))

    expected = [answer["choices"][0]["token_ids"] for answer in alone] * 5
    assert [answer.token_ids for answer in together] == expected
    await wait_until(mesh.is_idle)
