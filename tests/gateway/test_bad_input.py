"""What is wrong with a request is said in OpenAI's words, and reaches no worker."""

import json
import time
from typing import Any

import aiohttp
import pytest
from fake_pool import FakePool

from gateway.errors import InvalidRequest
from gateway.model import Model
from gateway.openai import CompletionCall, parse

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"

# What is sent beside a good prompt, and the parameter that the error names.
BAD_FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": "5"}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"max_tokens": True}, "max_tokens"),
    ({"max_tokens": 10**400}, "max_tokens"),
    ({"max_tokens": 128}, "max_tokens"),
    ({"max_completion_tokens": -1}, "max_completion_tokens"),
    ({"min_tokens": 17}, "min_tokens"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 11}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.1}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"min_p": 2}, "min_p"),
    ({"seed": 2**63}, "seed"),
    ({"stop": ""}, "stop"),
    ({"stop": 5}, "stop"),
    ({"stop": ["x" * 257]}, "stop"),
    ({"stop": ["x"] * 17}, "stop"),
    ({"stop_token_ids": [512]}, "stop_token_ids"),
    ({"stop_token_ids": [-1]}, "stop_token_ids"),
    ({"stop_token_ids": list(range(65))}, "stop_token_ids"),
    ({"stop_token_ids": list(range(10, 74))}, "stop_token_ids"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"include_usage": 1}}, "stream_options"),
    ({"n": 0}, "n"),
    ({"n": 17}, "n"),
    ({"n": True}, "n"),
    ({"echo": True}, "echo"),
    ({"best_of": 0}, "best_of"),
    ({"best_of": 17}, "best_of"),
    ({"best_of": 2, "n": 3}, "best_of"),
    ({"best_of": 2, "stream": True}, "best_of"),
    ({"cache_salt": 5}, "cache_salt"),
    ({"cache_salt": "x" * 257}, "cache_salt"),
    ({"logprobs": 1}, "logprobs"),
    ({"logit_bias": {"5": 1}}, "logit_bias"),
    ({"presence_penalty": 0.5}, "presence_penalty"),
    ({"frequency_penalty": -1}, "frequency_penalty"),
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"model": 5}, "model"),
]

BAD_PROMPTS: list[Any] = [
    None,
    5,
    [],
    [[]],
    {},
    ["a", 5],
    [5, "a"],
    [True],
    [-1],
    [1.0],
    [512],
    [2**40],
    [[1], [512]],
    ["a"] * 17,
    [[1]] * 17,
    [1] * 128,
    "word " * 200,
    "x" * 100_000,
]

BAD_MESSAGES: list[Any] = [
    None,
    "Hello",
    [],
    [{}],
    ["Hello"],
    [{"role": "user"}],
    [{"role": "user", "content": None}],
    [{"role": "user", "content": 5}],
    [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
    [{"role": "user", "content": [{"type": "text"}]}],
    [{"role": "user", "content": ["text"]}],
    [{"role": "tool", "content": "x"}],
    [{"role": "wizard", "content": "x"}],
    [{"role": "user", "content": "word " * 200}],
]

BAD_BODIES = [
    b"",
    b"{",
    b"[]",
    b"null",
    b'"prompt"',
    b"\xff\xfe",
    b'{"prompt": NaN}',
    b'{"prompt": "\\ud800"}',
    b'{"prompt": "a", "temperature": Infinity}',
    b"[" * 200_000,
    b'{"a":' * 100_000,
    b'{"prompt": ' + b"9" * 10_000 + b"}",
]


async def refusal(response: aiohttp.ClientResponse, pool: FakePool) -> dict[str, Any]:
    """The error of a 400, in OpenAI's shape and of no concern to the pool."""
    body = await response.json()
    assert response.status == 400, body
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["type"] == "invalid_request_error"
    assert body["error"]["message"]
    assert pool.jobs == []
    return dict(body["error"])


@pytest.mark.parametrize(("fields", "param"), BAD_FIELDS)
async def test_bad_fields_are_named(
    client: aiohttp.ClientSession,
    pool: FakePool,
    fields: dict[str, Any],
    param: str,
) -> None:
    """The error names the field that cannot be served."""
    async with client.post(COMPLETIONS, json={"prompt": "a", **fields}) as response:
        error = await refusal(response, pool)

    assert error["param"] == param


@pytest.mark.parametrize("prompt", BAD_PROMPTS)
async def test_bad_prompts_are_refused(
    client: aiohttp.ClientSession, pool: FakePool, prompt: Any
) -> None:
    """A prompt is text or token ids that the model knows and that fit."""
    async with client.post(COMPLETIONS, json={"prompt": prompt}) as response:
        await refusal(response, pool)


@pytest.mark.parametrize("messages", BAD_MESSAGES)
async def test_bad_messages_are_refused(
    client: aiohttp.ClientSession, pool: FakePool, messages: Any
) -> None:
    """Messages have a known role and text."""
    async with client.post(CHAT, json={"messages": messages}) as response:
        await refusal(response, pool)


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
@pytest.mark.parametrize("body", BAD_BODIES)
async def test_bodies_that_are_no_json_object_are_refused(
    client: aiohttp.ClientSession, pool: FakePool, body: bytes, path: str
) -> None:
    """Broken, deep or foreign bodies are an ordinary error."""
    async with client.post(path, data=body) as response:
        await refusal(response, pool)


@pytest.mark.parametrize(
    ("fields", "param"), [({"n": 5}, "n"), ({"n": 2, "best_of": 5}, "best_of")]
)
async def test_a_call_is_no_flood(
    client: aiohttp.ClientSession,
    pool: FakePool,
    fields: dict[str, Any],
    param: str,
) -> None:
    """Prompts times answers have a limit, and the error says how much was asked for."""
    body = {"prompt": ["a"] * 13, **fields}

    async with client.post(COMPLETIONS, json=body) as response:
        error = await refusal(response, pool)

    assert error["param"] == param
    assert "at most 64" in error["message"]
    assert "65" in error["message"]


async def test_chats_are_not_ranked(
    client: aiohttp.ClientSession, pool: FakePool
) -> None:
    """best_of is a parameter of completions: in a chat it must ask for nothing."""
    body = {"messages": [{"role": "user", "content": "a"}], "best_of": 2}

    async with client.post(CHAT, json=body) as response:
        error = await refusal(response, pool)

    assert error["param"] == "best_of"


async def test_missing_prompt_is_named(
    client: aiohttp.ClientSession, pool: FakePool
) -> None:
    """An empty object lacks a prompt."""
    async with client.post(COMPLETIONS, json={}) as response:
        error = await refusal(response, pool)

    assert error["param"] == "prompt"


async def test_too_many_tokens_are_explained_as_in_vllm(
    client: aiohttp.ClientSession, pool: FakePool
) -> None:
    """The error says how long the context is and how much of it the prompt takes."""
    body = {"prompt": [1, 2, 3], "max_tokens": 126}

    async with client.post(COMPLETIONS, json=body) as response:
        error = await refusal(response, pool)

    assert error["code"] == "context_length_exceeded"
    assert "(126 > 128 - 3)" in error["message"]


async def test_without_max_tokens_the_default_shrinks_to_fit(
    client: aiohttp.ClientSession, pool: FakePool
) -> None:
    """The default length of a completion is no reason to refuse a prompt that fits."""
    async with client.post(COMPLETIONS, json={"prompt": [5] * 120}) as response:
        answer = await response.json()

    assert answer["usage"]["completion_tokens"] == 8


async def test_text_needs_a_tokenizer(serve: Any, pool: FakePool, model: Model) -> None:
    """A model without a tokenizer serves token ids and says so."""
    bare = Model(model.name, model.eos_ids, model.sampling, tokenizer=None)
    client = await serve(served=bare)

    async with client.post(COMPLETIONS, json={"prompt": "text"}) as response:
        error = await refusal(response, pool)
    async with client.post(COMPLETIONS, json={"prompt": [5]}) as response:
        answer = await response.json()

    assert "token ids" in error["message"]
    assert answer["choices"][0]["text"] == ""


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "not_found"),
        ("GET", COMPLETIONS, 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("GET", "/v1/models/other", 404, "model_not_found"),
    ],
)
async def test_wrong_paths_have_the_same_shape(
    client: aiohttp.ClientSession, method: str, path: str, status: int, code: str
) -> None:
    """Unknown paths and methods get OpenAI's error body too."""
    async with client.request(method, path) as response:
        error = (await response.json())["error"]

    assert (response.status, error["code"]) == (status, code)


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
async def test_unknown_models_are_not_found(
    client: aiohttp.ClientSession, pool: FakePool, path: str
) -> None:
    """A model that is not served is a 404 with OpenAI's code."""
    message = {"role": "user", "content": "a"}
    body = {"model": "gpt-5", "prompt": "a", "messages": [message]}

    async with client.post(path, data=json.dumps(body)) as response:
        error = (await response.json())["error"]

    assert (response.status, error["code"]) == (404, "model_not_found")
    assert pool.jobs == []


def test_wrong_elements_of_a_long_list_cost_little() -> None:
    """A list of a million wrong tokens is refused at the first of them."""
    body = json.dumps({"prompt": [1, *[1.5] * 700_000]}).encode()
    began = time.process_time()

    with pytest.raises(InvalidRequest):
        parse(CompletionCall, body)

    assert time.process_time() - began < 1
