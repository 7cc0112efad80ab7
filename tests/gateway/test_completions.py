"""POST /v1/completions as its clients use it."""

import aiohttp
import pytest
from fake_pool import FakePool, pool_status, saying, tokens
from redis.asyncio import Redis
from server_sent import events
from waiting import wait_until

from gateway.model import Model
from protocol import keys
from protocol.wire import encode

EOS = 1
ONCE_UPON_A_TIME = [403, 407, 261, 378]


async def test_answer_counts_tokens_and_says_why_it_ended(
    client: aiohttp.ClientSession, pool: FakePool
) -> None:
    """An answer that is not streamed has text, finish reason and usage."""
    body = {"prompt": [1, 402], "max_tokens": 3, "model": "stories260K"}

    async with client.post("/v1/completions", json=body) as response:
        answer = await response.json()

    assert response.status == 200
    [choice] = answer["choices"]
    assert choice["finish_reason"] == "length"
    assert answer["usage"] == {
        "prompt_tokens": 2,
        "completion_tokens": 3,
        "total_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert pool.job.token_ids == (1, 402)
    assert pool.job.sampling.max_tokens == 3


async def test_text_is_what_the_tokenizer_makes_of_the_tokens(
    client: aiohttp.ClientSession, pool: FakePool
) -> None:
    """Text and token ids of an answer tell the same story."""
    pool.script = saying(*ONCE_UPON_A_TIME, finish="length")

    async with client.post(
        "/v1/completions", json={"prompt": "a", "return_token_ids": True}
    ) as response:
        [choice] = (await response.json())["choices"]

    assert choice["text"] == " Once upon a time"
    assert choice["token_ids"] == ONCE_UPON_A_TIME
    assert choice["prompt_token_ids"] == list(pool.job.token_ids)


async def test_stream_joins_up_to_the_whole_answer(
    client: aiohttp.ClientSession, pool: FakePool
) -> None:
    """The pieces of a stream are the text; only the last has a finish reason."""
    pool.script = saying(*ONCE_UPON_A_TIME, finish="length")

    async with client.post(
        "/v1/completions", json={"prompt": "a", "stream": True}
    ) as response:
        chunks = await events(response)

    choices = [chunk["choices"][0] for chunk in chunks]
    assert "".join(choice["text"] for choice in choices) == " Once upon a time"
    assert [choice["finish_reason"] for choice in choices[:-1]] == [None] * (
        len(choices) - 1
    )
    assert choices[-1]["finish_reason"] == "length"
    assert {chunk["id"] for chunk in chunks} == {chunks[0]["id"]}
    assert "usage" not in chunks[0]


async def test_stream_ends_with_usage_when_asked(
    client: aiohttp.ClientSession, pool: FakePool
) -> None:
    """With include_usage a last chunk without choices counts the tokens."""
    pool.script = lambda job: [
        tokens(job, 400, num_cached_tokens=1),
        tokens(job, 401, index=1, finish="length"),
    ]
    body = {
        "prompt": [1, 2],
        "stream": True,
        "stream_options": {"include_usage": True},
    }

    async with client.post("/v1/completions", json=body) as response:
        *chunks, last = await events(response)

    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 2
    assert last["usage"]["prompt_tokens_details"] == {"cached_tokens": 1}


async def test_streamed_token_ids_are_complete(
    client: aiohttp.ClientSession, pool: FakePool
) -> None:
    """With return_token_ids the first chunk has the prompt, and each has its tokens."""
    body = {"prompt": [1, 2], "max_tokens": 4, "stream": True, "return_token_ids": True}

    async with client.post("/v1/completions", json=body) as response:
        choices = [chunk["choices"][0] for chunk in await events(response)]

    assert choices[0]["prompt_token_ids"] == [1, 2]
    streamed = [token_id for choice in choices for token_id in choice["token_ids"]]
    assert streamed == [3, 4, 5, 6]


async def test_end_of_sequence_is_counted_but_not_shown(
    client: aiohttp.ClientSession, pool: FakePool
) -> None:
    """The model's end token stops the answer and leaves no text."""
    pool.script = saying(403, EOS)

    async with client.post(
        "/v1/completions", json={"prompt": "a", "return_token_ids": True}
    ) as response:
        answer = await response.json()

    [choice] = answer["choices"]
    assert (choice["text"], choice["token_ids"]) == (" Once", [403, EOS])
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", None)
    assert answer["usage"]["completion_tokens"] == 2
    assert EOS in pool.job.sampling.stop_token_ids


async def test_stop_token_is_named_and_not_shown(
    client: aiohttp.ClientSession, pool: FakePool
) -> None:
    """A stop token that the client asked for is the stop reason; its text is cut."""
    pool.script = saying(403, 407)
    body = {"prompt": "a", "stop_token_ids": [407], "ignore_eos": True}

    async with client.post("/v1/completions", json=body) as response:
        [choice] = (await response.json())["choices"]

    assert choice["text"] == " Once"
    assert choice["stop_reason"] == 407
    assert pool.job.sampling.stop_token_ids == (407,)


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_stop_string_across_tokens_ends_the_answer(
    client: aiohttp.ClientSession, pool: FakePool, is_streamed: bool
) -> None:
    """Text before the stop string is shown, nothing of it, and the pool hears Cancel."""
    pool.script = saying(*ONCE_UPON_A_TIME, 300, 301, finish=None)
    body = {"prompt": "a", "stop": ["never", "on a t"], "stream": is_streamed}

    async with client.post("/v1/completions", json=body) as response:
        chunks = await events(response) if is_streamed else [await response.json()]

    choices = [chunk["choices"][0] for chunk in chunks]
    assert "".join(choice["text"] for choice in choices) == " Once up"
    assert choices[-1]["finish_reason"] == "stop"
    assert choices[-1]["stop_reason"] == "on a t"
    await wait_until(lambda: pool.cancelled == [pool.job.request_id])


async def test_several_prompts_are_several_choices(
    client: aiohttp.ClientSession, pool: FakePool
) -> None:
    """Every prompt of a list gets the choice of its index; usage adds up."""
    body = {"prompt": [[1, 100], [1, 200]], "max_tokens": 2, "return_token_ids": True}

    async with client.post("/v1/completions", json=body) as response:
        answer = await response.json()

    choices = sorted(answer["choices"], key=lambda choice: choice["index"])
    assert [choice["token_ids"] for choice in choices] == [[101, 102], [201, 202]]
    assert answer["usage"]["total_tokens"] == 8


async def test_several_prompts_share_one_stream(
    client: aiohttp.ClientSession, pool: FakePool
) -> None:
    """Chunks of several prompts arrive mixed and tell their index."""
    body = {
        "prompt": [[1, 100], [1, 200]],
        "max_tokens": 3,
        "stream": True,
        "return_token_ids": True,
    }

    async with client.post("/v1/completions", json=body) as response:
        choices = [chunk["choices"][0] for chunk in await events(response)]

    received: dict[int, list[int]] = {0: [], 1: []}
    for choice in choices:
        received[choice["index"]] += choice["token_ids"]
    assert received == {0: [101, 102, 103], 1: [201, 202, 203]}


async def test_split_characters_are_never_shown_in_pieces(
    client: aiohttp.ClientSession, pool: FakePool, model: Model
) -> None:
    """An emoji of four byte tokens is one piece of text."""
    assert model.tokenizer is not None
    pool.script = saying(*model.tokenizer.encode("é😀 ok")[1:], finish="length")

    async with client.post(
        "/v1/completions", json={"prompt": "a", "stream": True}
    ) as response:
        texts = [chunk["choices"][0]["text"] for chunk in await events(response)]

    assert "".join(texts) == " é😀 ok"
    assert not any("\ufffd" in text for text in texts)


@pytest.mark.parametrize("prompt", ["Once upon", [1, 403, 407]])
async def test_text_continues_the_prompt(
    client: aiohttp.ClientSession, pool: FakePool, prompt: object
) -> None:
    """Prompt and text read right when they are put together, as in vLLM."""
    pool.script = saying(*ONCE_UPON_A_TIME[2:], finish="length")

    async with client.post("/v1/completions", json={"prompt": prompt}) as response:
        [choice] = (await response.json())["choices"]

    assert choice["text"] == " a time"


async def test_text_after_an_empty_prompt_has_no_leading_space(
    client: aiohttp.ClientSession, pool: FakePool
) -> None:
    """A prompt of nothing but the model's begin token has no text to continue."""
    pool.script = saying(*ONCE_UPON_A_TIME, finish="length")

    async with client.post("/v1/completions", json={"prompt": [1]}) as response:
        [choice] = (await response.json())["choices"]

    assert choice["text"] == "Once upon a time"


async def test_sampling_parameters_reach_the_pool(
    client: aiohttp.ClientSession, pool: FakePool
) -> None:
    """What the client asks for is what the worker is told; -1 means no top_k."""
    body = {
        "prompt": [5],
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": -1,
        "min_p": 0.1,
        "seed": 7,
        "min_tokens": 2,
        "user": "somebody",
        "presence_penalty": 0,
        "logit_bias": None,
        "metadata": {"a": "b"},
    }

    async with client.post("/v1/completions", json=body) as response:
        assert response.status == 200

    sampling = pool.job.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.9, 0)
    assert (sampling.min_p, sampling.seed, sampling.min_tokens) == (0.1, 7, 2)
    assert sampling.max_tokens == 16


async def test_cache_salt_reaches_the_pool(
    client: aiohttp.ClientSession, pool: FakePool
) -> None:
    """Prompts share blocks only with those of the same salt; by default it is none."""
    for fields in ({"cache_salt": "tenant-1"}, {}):
        async with client.post(
            "/v1/completions", json={"prompt": [5], **fields}
        ) as response:
            assert response.status == 200

    assert [job.cache_salt for job in pool.jobs] == ["tenant-1", ""]


async def test_request_id_is_echoed(
    client: aiohttp.ClientSession, pool: FakePool
) -> None:
    """A client's X-Request-Id comes back; without one there is a new one."""
    headers = {"X-Request-Id": "mine-1"}

    async with client.post(
        "/v1/completions", json={"prompt": [5], "stream": True}, headers=headers
    ) as response:
        echoed = response.headers["X-Request-Id"]
    async with client.get("/v1/models") as response:
        made = response.headers["X-Request-Id"]

    assert echoed == "mine-1"
    assert len(made) == 32


async def test_the_pool_shows_itself(
    client: aiohttp.ClientSession, pool: FakePool
) -> None:
    """Blocks, what happened there since its store started, and who lives."""
    async with client.get("/v1/pools") as response:
        (shown,) = (await response.json())["data"]

    assert shown["blocks"]["free"] == 100
    assert shown["sharing"] == "memfd"
    assert shown["counts"]["recoveries"] == 0
    assert shown["prefix_cache_hit_rate"] == 0
    assert {worker["service"] for worker in shown["workers"]} >= {"prefill", "decode"}
    assert shown["shares_by"] == "people"


async def test_who_shares_are_by_is_shown(
    client: aiohttp.ClientSession, pool: FakePool, redis: Redis
) -> None:
    """Nobody but the queue, as long as nobody sets any and no SLO is followed."""
    body = encode(pool_status(shares_by="queue"))

    async def shown() -> bool:
        await redis.set(keys.pool("default"), body)
        async with client.get("/v1/pools") as response:
            (pool,) = (await response.json())["data"]
        return bool(pool["shares_by"] == "queue")

    await wait_until(shown)
