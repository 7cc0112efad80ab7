"""The official client works against the gateway unchanged."""

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import openai
import pytest
from fake_pool import FakePool, saying, tokens
from openai import AsyncOpenAI

from protocol.messages import Failed

MODEL = "stories260K"


@pytest.fixture
async def api(
    client: aiohttp.ClientSession, started: Any
) -> AsyncIterator[AsyncOpenAI]:
    """OpenAI's client of the gateway, without its own retries."""
    url = f"{started[-1].url}/v1"
    async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as openai_api:
        yield openai_api


async def test_completion(api: AsyncOpenAI, pool: FakePool) -> None:
    """A completion, whole."""
    pool.script = saying(403, 407, finish="length")

    answer = await api.completions.create(model=MODEL, prompt="a", max_tokens=2)

    assert answer.choices[0].text == " Once upon"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 2


async def test_streamed_chat(api: AsyncOpenAI, pool: FakePool) -> None:
    """A chat, streamed, with usage at its end."""
    pool.script = saying(403, 407, 261, finish="length")

    stream = await api.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Hello"}],
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]

    texts = [chunk.choices[0].delta.content or "" for chunk in chunks[:-1]]
    assert "".join(texts) == " Once upon a"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 3


async def test_streamed_completion_and_whole_chat(
    api: AsyncOpenAI, pool: FakePool
) -> None:
    """The other two of the four ways to ask."""
    pool.script = saying(403, 1)

    stream = await api.completions.create(model=MODEL, prompt="a", stream=True)
    texts = [chunk.choices[0].text async for chunk in stream]
    chat = await api.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "Hello"}]
    )

    assert "".join(texts) == chat.choices[0].message.content == " Once"
    assert chat.choices[0].finish_reason == "stop"


async def test_several_choices(api: AsyncOpenAI, pool: FakePool) -> None:
    """n and best_of are the official client's own parameters."""
    pool.script = saying(403, 1)

    best = await api.completions.create(model=MODEL, prompt="a", n=2, best_of=3)
    stream = await api.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "Hello"}], n=2, stream=True
    )
    indices = {chunk.choices[0].index async for chunk in stream}

    assert [choice.text for choice in best.choices] == [" Once"] * 2
    assert indices == {0, 1}


async def test_models(api: AsyncOpenAI) -> None:
    """The list of models has the served one, which can be looked up."""
    models = [model.id async for model in api.models.list()]

    assert models == [MODEL]
    assert (await api.models.retrieve(MODEL)).id == MODEL


async def test_errors_have_the_classes_that_users_catch(
    api: AsyncOpenAI, pool: FakePool
) -> None:
    """Wrong parameters, unknown models and broken streams raise OpenAI's errors."""
    with pytest.raises(openai.BadRequestError) as bad:
        await api.completions.create(model=MODEL, prompt="a", max_tokens=500)
    with pytest.raises(openai.NotFoundError):
        await api.completions.create(model="other", prompt="a")
    pool.script = lambda job: [
        tokens(job, 403),
        Failed(request_id=job.request_id, reason="no memory"),
    ]
    stream = await api.completions.create(model=MODEL, prompt="a", stream=True)
    with pytest.raises(openai.APIError, match="no memory"):
        _ = [chunk async for chunk in stream]

    assert bad.value.code == "context_length_exceeded"
