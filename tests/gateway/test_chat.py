"""POST /v1/chat/completions as its clients use it."""

from pathlib import Path

import aiohttp
from fake_pool import MAX_MODEL_LEN, FakePool, saying
from server_sent import events

from gateway.model import Model, load_model
from gateway.settings import Settings

HELLO = {"role": "user", "content": "Hello"}
SYSTEM = {"role": "system", "content": "Be kind."}


def prompt_of(pool: FakePool, model: Model) -> str:
    assert model.tokenizer is not None
    return model.tokenizer.decode([*pool.job.token_ids[1:]])


async def test_answer_is_a_message(
    client: aiohttp.ClientSession, pool: FakePool, model: Model
) -> None:
    """The assistant's message holds the text; the plain template made the prompt."""
    pool.script = saying(403, 407, finish="length")

    async with client.post(
        "/v1/chat/completions", json={"messages": [SYSTEM, HELLO]}
    ) as response:
        answer = await response.json()

    assert answer["object"] == "chat.completion"
    [choice] = answer["choices"]
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"] == " Once upon"
    assert prompt_of(pool, model) == "system: Be kind.\nuser: Hello\nassistant:"


async def test_answer_may_fill_the_context(
    client: aiohttp.ClientSession, pool: FakePool
) -> None:
    """Without max_tokens an answer may be as long as the context allows."""
    async with client.post(
        "/v1/chat/completions", json={"messages": [HELLO]}
    ) as response:
        usage = (await response.json())["usage"]

    assert usage["total_tokens"] == MAX_MODEL_LEN


async def test_stream_begins_with_the_role(
    client: aiohttp.ClientSession, pool: FakePool
) -> None:
    """The first chunk names the role, and the contents join up to the answer."""
    pool.script = saying(403, 407, 261, finish="length")
    body = {"messages": [HELLO], "stream": True, "return_token_ids": True}

    async with client.post("/v1/chat/completions", json=body) as response:
        chunks = await events(response)

    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0]["role"] == "assistant"
    assert all("role" not in delta for delta in deltas[1:])
    assert "".join(delta["content"] for delta in deltas) == " Once upon a"
    assert chunks[0]["prompt_token_ids"] == list(pool.job.token_ids)
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


async def test_content_may_come_in_text_parts(
    client: aiohttp.ClientSession, pool: FakePool, model: Model
) -> None:
    """Text parts are joined by line breaks, as in vLLM."""
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    body = {"messages": [{"role": "user", "content": parts}], "max_tokens": 1}

    async with client.post("/v1/chat/completions", json=body) as response:
        assert response.status == 200

    assert prompt_of(pool, model) == "user: one\ntwo\nassistant:"


async def test_cache_salt_reaches_the_pool(
    client: aiohttp.ClientSession, pool: FakePool
) -> None:
    """A conversation shares blocks only with those of the same salt."""
    body = {"messages": [HELLO], "max_tokens": 1, "cache_salt": "tenant-1"}

    async with client.post("/v1/chat/completions", json=body) as response:
        assert response.status == 200

    assert pool.job.cache_salt == "tenant-1"


async def test_max_completion_tokens_is_the_newer_name(
    client: aiohttp.ClientSession, pool: FakePool
) -> None:
    """Of the two names for the output's length the newer one counts."""
    body = {"messages": [HELLO], "max_completion_tokens": 2, "max_tokens": 9}

    async with client.post("/v1/chat/completions", json=body) as response:
        usage = (await response.json())["usage"]

    assert usage["completion_tokens"] == 2


async def test_template_comes_from_a_file(stories: Path, tmp_path: Path) -> None:
    """A template given by its path is used instead of the tokenizer's own."""
    template = tmp_path / "template.jinja"
    template.write_text("{% for m in messages %}<{{ m.content }}>{% endfor %}")
    settings = Settings(model=str(stories), chat_template=str(template))

    tokenizer = load_model(settings).tokenizer

    assert tokenizer is not None
    assert tokenizer.render([{"role": "user", "content": "hi"}]) == "<hi>"
