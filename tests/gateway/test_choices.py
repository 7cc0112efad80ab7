"""Several answers to one prompt: n of them, or the best of more."""

from collections.abc import Iterable, Sequence
from typing import Any

import aiohttp
import pytest
from fake_pool import FakePool, Script, tokens
from server_sent import events
from waiting import wait_until

from protocol.messages import Failed, PrefillJob, TokenEvents

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
HELLO = {"role": "user", "content": "Hello"}


def numbering(pool: FakePool, *, num_cached_tokens: int = 0) -> Script:
    """A script whose n-th job says two tokens, 100 + n and 200 + n."""

    def script(job: PrefillJob) -> Iterable[TokenEvents]:
        number = len(pool.jobs) - 1
        yield tokens(job, 100 + number, num_cached_tokens=num_cached_tokens + number)
        yield tokens(job, 200 + number, index=1, finish="length")

    return script


def rating(pool: FakePool, *logprobs: Sequence[float]) -> Script:
    """A script whose n-th job says as many tokens, 100 + n, as it has ratings."""

    def script(job: PrefillJob) -> Iterable[TokenEvents]:
        number = len(pool.jobs) - 1
        rated = tuple(logprobs[number])
        said = [100 + number] * len(rated)
        yield tokens(job, *said, logprobs=rated, finish="length")

    return script


async def answer_to(
    client: aiohttp.ClientSession, path: str, body: dict[str, Any]
) -> dict[str, Any]:
    async with client.post(path, json={"return_token_ids": True, **body}) as response:
        answer = await response.json()
        assert response.status == 200, answer
        return dict(answer)


async def test_every_prompt_gets_n_choices(
    client: aiohttp.ClientSession, pool: FakePool
) -> None:
    """The choices of a prompt follow each other, and each is a sequence of its own."""
    pool.script = numbering(pool)

    answer = await answer_to(client, COMPLETIONS, {"prompt": [[5], [6]], "n": 3})

    choices = answer["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2, 3, 4, 5]
    assert [choice["prompt_token_ids"] for choice in choices] == [[5]] * 3 + [[6]] * 3
    assert [c["token_ids"] for c in choices] == [[100 + n, 200 + n] for n in range(6)]
    assert len({job.request_id for job in pool.jobs}) == 6


async def test_a_chat_gets_n_messages(
    client: aiohttp.ClientSession, pool: FakePool
) -> None:
    """Every choice of a chat is a whole message."""
    pool.script = numbering(pool)

    answer = await answer_to(client, CHAT, {"messages": [HELLO], "n": 2})

    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert all(c["message"]["role"] == "assistant" for c in answer["choices"])
    assert [c["token_ids"] for c in answer["choices"]] == [[100, 200], [101, 201]]


@pytest.mark.parametrize(
    ("path", "prompt"), [(COMPLETIONS, {"prompt": [5]}), (CHAT, {"messages": [HELLO]})]
)
async def test_streamed_chunks_tell_their_choice(
    client: aiohttp.ClientSession, pool: FakePool, path: str, prompt: dict[str, Any]
) -> None:
    """Chunks of all choices share the stream, and join up to each by its index."""
    pool.script = numbering(pool)
    body = {**prompt, "n": 3, "stream": True, "return_token_ids": True}

    async with client.post(path, json=body) as response:
        choices = [chunk["choices"][0] for chunk in await events(response)]

    received: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for choice in choices:
        received[choice["index"]] += choice["token_ids"]
    assert received == {0: [100, 200], 1: [101, 201], 2: [102, 202]}
    assert [choice["finish_reason"] for choice in choices].count("length") == 3


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_prompt_is_counted_once(
    client: aiohttp.ClientSession, pool: FakePool, is_streamed: bool
) -> None:
    """Usage has the output of all choices, and of each prompt only its first choice."""
    pool.script = numbering(pool, num_cached_tokens=1)
    body: dict[str, Any] = {"prompt": [5, 6, 7], "n": 3, "stream": is_streamed}
    if is_streamed:
        body["stream_options"] = {"include_usage": True}

    async with client.post(COMPLETIONS, json=body) as response:
        last = (await events(response))[-1] if is_streamed else await response.json()

    assert last["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 6,
        "total_tokens": 9,
        "prompt_tokens_details": {"cached_tokens": 1},
    }


async def test_choices_draw_from_seeds_of_their_own(
    client: aiohttp.ClientSession, pool: FakePool
) -> None:
    """A seeded call is repeatable as a whole, and begins with what n = 1 would give."""
    for n in (3, 3, 1):
        await answer_to(client, COMPLETIONS, {"prompt": [5], "seed": 7, "n": n})

    seeds = [job.sampling.seed for job in pool.jobs]
    assert seeds[:3] == seeds[3:6]
    assert seeds[0] == seeds[6] == 7
    assert len(set(seeds)) == 3


async def test_a_call_may_have_as_many_sequences_as_its_limit(
    client: aiohttp.ClientSession, pool: FakePool
) -> None:
    """Sixteen prompts with four choices each are not too many."""
    answer = await answer_to(
        client, COMPLETIONS, {"prompt": [[5]] * 16, "n": 4, "max_tokens": 1}
    )

    assert [choice["index"] for choice in answer["choices"]] == list(range(64))


async def test_one_failing_choice_ends_its_siblings(
    client: aiohttp.ClientSession, pool: FakePool
) -> None:
    """An answer without one of its choices is none; the others are cancelled."""
    pool.script = lambda job: (
        [Failed(request_id=job.request_id, reason="no memory")]
        if len(pool.jobs) == 3
        else []
    )

    async with client.post(COMPLETIONS, json={"prompt": [5], "n": 3}) as response:
        error = (await response.json())["error"]

    assert (response.status, error["message"]) == (500, "no memory")
    await wait_until(lambda: len(pool.cancelled) == 2)


async def test_best_of_gives_the_likeliest_per_token(
    client: aiohttp.ClientSession, pool: FakePool
) -> None:
    """The mean decides: neither the sum, which long answers lose, nor the order."""
    pool.script = rating(pool, [-0.9], [-0.5, -0.5, -0.5], [-2, -0.1], [-0.1, -0.4])

    answer = await answer_to(
        client, COMPLETIONS, {"prompt": [5], "n": 2, "best_of": 4, "seed": 7}
    )

    choices = answer["choices"]
    assert [choice["index"] for choice in choices] == [0, 1]
    assert [choice["token_ids"] for choice in choices] == [[103] * 2, [101] * 3]
    assert pool.jobs[0].sampling.seed == 7
    assert all(job.sampling.logprobs for job in pool.jobs)


async def test_best_of_ranks_each_prompt_by_itself(
    client: aiohttp.ClientSession, pool: FakePool
) -> None:
    """An unlikely answer is given if its prompt has no better one."""
    pool.script = rating(pool, [-5.0], [-4.0], [-0.2], [-0.1])

    answer = await answer_to(client, COMPLETIONS, {"prompt": [[5], [6]], "best_of": 2})

    assert [c["token_ids"] for c in answer["choices"]] == [[101], [103]]
    assert [c["index"] for c in answer["choices"]] == [0, 1]


async def test_best_of_counts_all_that_was_generated(
    client: aiohttp.ClientSession, pool: FakePool
) -> None:
    """Usage has the tokens of every candidate, also of those that nobody sees."""
    pool.script = rating(pool, [-1.0] * 2, [-2.0] * 3, [-3.0] * 4)

    answer = await answer_to(client, COMPLETIONS, {"prompt": [5, 6], "best_of": 3})

    assert len(answer["choices"]) == 1
    assert answer["usage"]["prompt_tokens"] == 2
    assert answer["usage"]["completion_tokens"] == 9


async def test_tokens_behind_a_stop_string_have_no_say(
    client: aiohttp.ClientSession, pool: FakePool
) -> None:
    """What came with a stop string but after it is no part of the answer."""
    once, upon, a = 403, 407, 261
    pool.script = lambda job: [
        tokens(job, once, upon, a, logprobs=(-0.1, -0.1, -9.0))
        if len(pool.jobs) == 1
        else tokens(job, a, upon, a, logprobs=(-1.0, -1.0, -0.1))
    ]
    body = {"prompt": [5], "best_of": 2, "stop": ["upon"], "max_tokens": 9}

    answer = await answer_to(client, COMPLETIONS, body)

    assert answer["choices"][0]["token_ids"] == [once, upon]
    assert answer["usage"]["completion_tokens"] == 4


async def test_best_of_one_may_be_streamed(
    client: aiohttp.ClientSession, pool: FakePool
) -> None:
    """A best_of that leaves nothing to choose asks for nothing."""
    body = {"prompt": [5], "best_of": 1, "stream": True, "max_tokens": 2}

    async with client.post(COMPLETIONS, json=body) as response:
        last = (await events(response))[-1]

    assert last["choices"][0]["finish_reason"] == "length"
    assert not pool.job.sampling.logprobs
