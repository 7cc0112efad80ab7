"""What clients of the whole mesh see."""

import asyncio

import aiohttp
from asking import stream
from openai import AsyncOpenAI
from running import RunningMesh
from waiting import wait_until

BOS = 1


def client(mesh: RunningMesh) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{mesh.url}/v1", api_key="none", max_retries=0)


async def test_openai_s_client_completes(mesh: RunningMesh) -> None:
    """
    The official client works unchanged, with usage and a reason for the end.
    """
    async with client(mesh) as openai:
        answer = await openai.completions.create(
            model="test", prompt="Once upon a time", max_tokens=12, temperature=0
        )

    assert answer.choices[0].text
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage
    assert answer.usage.completion_tokens == 12


async def test_openai_s_client_streams_a_chat(mesh: RunningMesh) -> None:
    """
    A streamed chat is the same answer as a whole one, piece by piece.
    """
    asked = {
        "model": "test",
        "messages": [{"role": "user", "content": "Tell me a story."}],
        "max_tokens": 30,
        "temperature": 0,
    }
    async with client(mesh) as openai:
        whole = await openai.chat.completions.create(**asked)  # type: ignore[call-overload]
        stream = await openai.chat.completions.create(**asked, stream=True)  # type: ignore[call-overload]
        pieces = [
            chunk.choices[0].delta.content or ""
            async for chunk in stream
            if chunk.choices
        ]

    assert "".join(pieces) == whole.choices[0].message.content
    assert len(pieces) > 5


async def test_a_client_that_leaves_frees_its_blocks(mesh: RunningMesh) -> None:
    """
    When a client hangs up in mid-stream, the blocks of its sequence are free again.
    """
    await wait_until(mesh.is_idle)
    asked = {"model": "test", "prompt": [BOS], "max_tokens": 400, "stream": True}
    asked |= {"ignore_eos": True}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{mesh.url}/v1/completions", json=asked) as response,
    ):
        await response.content.readline()
        await wait_until(lambda: mesh.blocks()["referenced"] > 0)

    await wait_until(mesh.is_idle, seconds=3)


async def test_a_pool_that_is_full_makes_requests_wait(mesh: RunningMesh) -> None:
    """
    More requests than the blocks can hold all complete, in turn.
    """
    # Each needs up to 32 blocks of 16 tokens: 32 at a time fit into 1,024.
    asked = {"prompt": [BOS], "max_tokens": 505, "ignore_eos": True}

    answers = await asyncio.gather(*(stream(mesh.url, **asked) for _ in range(40)))

    assert {len(answer.token_ids) for answer in answers} == {505}
    await wait_until(mesh.is_idle)
