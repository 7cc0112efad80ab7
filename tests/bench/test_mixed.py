"""Streams with prompts among them, before a server that answers at its own pace."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from bench.measures import Outcome
from bench.mixed import Mix, Seen, drive

PIECE_SECONDS = 0.01
MIX = Mix(
    stream_rate=20,
    of_streams=(8, 50),
    of_prompts=(20, 2),
    rate=40,
    seconds=0.3,
    vocab_size=500,
    seed="mix",
    settle_seconds=0.1,
    answer_seconds=20,
)


async def completions(request: web.Request) -> web.StreamResponse:
    """A token at a time, as many as are asked for."""
    body = await request.json()
    response = web.StreamResponse()
    await response.prepare(request)
    chunk: dict[str, Any] = {"choices": [{"text": "a", "finish_reason": None}]}
    for _ in range(body["max_tokens"]):
        await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
        await asyncio.sleep(PIECE_SECONDS)
    return response


async def refusing(_: web.Request) -> web.Response:
    return web.json_response({"error": "too busy"}, status=503)


async def models(_: web.Request) -> web.Response:
    return web.json_response({"data": [{"id": "one"}]})


@pytest.fixture
async def url(request: pytest.FixtureRequest) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_post("/v1/completions", getattr(request, "param", completions))
    app.router.add_get("/v1/models", models)
    async with TestServer(app, handler_cancellation=True) as running:
        yield str(running.make_url(""))


async def test_streams_go_on_until_time_is_over(url: str) -> None:
    """
    All prompts are answered among streams that are then hung up on, which is no failure.
    """
    async with asyncio.timeout(10):
        seen = await drive(url, MIX)

    assert [each.is_answered for each in seen.prompts] == [True] * 12
    assert {each.error for each in seen.streams} == {""}
    assert min(seen.itls) > 0
    assert 0 < seen.tokens_per_second <= MIX.stream_rate * 50


@pytest.mark.parametrize("url", [refusing], indirect=True)
async def test_failures_are_told(url: str) -> None:
    """
    A server that refuses has outcomes with errors, and nothing to count.
    """
    seen = await drive(url, MIX)

    assert all("too busy" in each.error for each in (*seen.streams, *seen.prompts))
    assert seen.itls == []
    assert seen.tokens_per_second == 0


def test_prompts_come_while_the_time_lasts() -> None:
    """
    As many as the rate says, all different, none after the end; none without a rate.
    """
    prompts = MIX.prompts()

    assert len({each.prompt for each in prompts}) == 12
    assert all(0 < each.at < MIX.seconds for each in prompts)
    assert replace(MIX, rate=0.0).prompts() == []


def test_streams_begin_evenly_until_the_end() -> None:
    """
    Whatever the server does: so many per second, from the settling on.
    """
    times = [each.at for each in MIX.streams()]

    assert times == pytest.approx([0.05 * number for number in range(8)])


def test_only_the_time_of_the_prompts_counts() -> None:
    """
    A gap counts if it ended in that time; a piece has as many tokens as whole answers say.
    """
    whole = Outcome(0.0, (1.0, 2.0, 3.0, 9.0), 8, num_output_tokens=8)
    cut = Outcome(0.0, (2.5, 3.5, 4.5), 8, num_output_tokens=0)

    seen = Seen(began=1.5, seconds=2.0, streams=[whole, cut], prompts=[])

    assert seen.itls == [1.0, 1.0, 1.0]
    assert seen.tokens_per_second == 3 * 2 / 2
