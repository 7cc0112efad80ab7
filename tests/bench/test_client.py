"""The benchmark's client, before a server that behaves as it is told."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from bench.client import connected
from bench.measures import Outcome
from bench.workload import Planned
from mesh.errors import ConfigurationError

ASKED = Planned(prompt=(200, 201, 202), max_tokens=3)
Send = Callable[[web.StreamResponse], Any]


class Server:
    """Remembers what it was asked, and streams what `send` writes."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.send: Send = answer
        self.status = 200
        self.owner = "somebody"
        self.tells = True

    async def completions(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(await request.json())
        if self.status != 200:
            return web.json_response({"error": "too busy"}, status=self.status)
        response = web.StreamResponse()
        await response.prepare(request)
        await self.send(response)
        return response

    async def models(self, _: web.Request) -> web.Response:
        if not self.tells:
            raise web.HTTPNotFound
        served = [{"id": name, "owned_by": self.owner} for name in ("first", "second")]
        return web.json_response({"data": served})


async def write(response: web.StreamResponse, **chunk: Any) -> None:
    await response.write(b"data: " + json.dumps({"choices": [], **chunk}).encode())
    await response.write(b"\n\n")


def piece(text: str, finish_reason: str | None = None) -> list[dict[str, Any]]:
    return [{"text": text, "finish_reason": finish_reason}]


async def answer(response: web.StreamResponse) -> None:
    """Three tokens in two pieces, the end, and the counts."""
    await write(response, choices=piece("a"))
    await asyncio.sleep(0.05)
    await write(response, choices=piece("bc"))
    await write(response, choices=piece("", "length"))
    await write(response, usage={"completion_tokens": 3})
    await response.write(b"data: [DONE]\n\n")


async def without_counts(response: web.StreamResponse) -> None:
    await write(response, choices=piece("a"))
    await write(response, choices=piece("b", "length"))


async def a_token_without_text(response: web.StreamResponse) -> None:
    await write(response, choices=[piece("", "length")[0] | {"token_ids": [200]}])


async def an_error(response: web.StreamResponse) -> None:
    await write(response, choices=piece("a"))
    await write(response, error={"message": "the worker died"})


async def no_json(response: web.StreamResponse) -> None:
    await response.write(b"data: {oops\n\n")


async def silence(response: web.StreamResponse) -> None:
    await asyncio.sleep(30)


@pytest.fixture
async def server() -> Server:
    return Server()


@pytest.fixture
async def url(server: Server) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_post("/v1/completions", server.completions)
    app.router.add_get("/v1/models", server.models)
    async with TestServer(app) as running:
        yield str(running.make_url(""))


async def asked(url: str, model: str = "m", seconds: float = 10) -> Outcome:
    async with connected(url, model, seconds) as client:
        return await client.ask(ASKED)


async def test_pieces_and_tokens_are_counted(server: Server, url: str) -> None:
    """
    Each piece has its time; the tokens are as many as the server says.
    """
    outcome = await asked(url)

    assert outcome.is_answered
    assert len(outcome.times) == 2
    assert outcome.num_output_tokens == 3
    assert outcome.num_prompt_tokens == 3
    assert 0.04 < outcome.itls[0] < 5


async def test_one_token_without_text_is_an_answer(server: Server, url: str) -> None:
    """
    The first byte of a character, say, where no more was asked for.
    """
    server.send = a_token_without_text

    outcome = await asked(url)

    assert outcome.is_answered
    assert outcome.num_output_tokens == 1


async def test_the_request_is_what_every_server_knows(server: Server, url: str) -> None:
    """
    Token ids as the prompt, greedy, of an exact length, streamed with its counts.
    """
    await asked(url, model="")

    (body,) = server.bodies
    assert body["model"] == "first"
    assert body["prompt"] == [200, 201, 202]
    assert body["max_tokens"] == 3
    assert body["ignore_eos"] is body["stream"] is True
    assert body["temperature"] == 0


async def test_a_plain_client_sends_text(server: Server, url: str) -> None:
    """
    For servers that refuse ids and what OpenAI does not know: a word for each token.
    """
    async with connected(url, "m", 10, is_plain=True) as client:
        outcome = await client.ask(ASKED)

    (body,) = server.bodies
    assert body["prompt"] == "200 201 202"
    assert not body.keys() & {"ignore_eos", "stream_options"}
    assert outcome.num_output_tokens == 3


@pytest.mark.parametrize("owner", ["tandem", "vllm", "somebody"])
async def test_every_token_is_asked_for_where_it_can_be(
    server: Server, url: str, owner: str
) -> None:
    """
    A token without text is none that a stream waits for. Others are not asked for what
    they may refuse, and a plain client asks nobody.
    """
    server.owner = owner
    await asked(url)
    async with connected(url, "m", 10, is_plain=True) as client:
        await client.ask(ASKED)

    asks = [body.get("return_token_ids") for body in server.bodies]
    assert asks == [None if owner == "somebody" else True, None]


async def test_a_server_need_not_tell_its_models(server: Server, url: str) -> None:
    """
    Where a person named one; otherwise nobody knows what to ask for.
    """
    server.tells = False

    assert (await asked(url, model="m")).is_answered
    with pytest.raises(ConfigurationError, match="no model"):
        await asked(url, model="")


async def test_without_counts_a_piece_is_a_token(server: Server, url: str) -> None:
    """
    Not every server counts for its clients.
    """
    server.send = without_counts

    assert (await asked(url)).num_output_tokens == 2


@pytest.mark.parametrize(
    ("send", "reason"),
    [(an_error, "the worker died"), (no_json, ""), (silence, "")],
    ids=["error", "no json", "silence"],
)
async def test_a_broken_answer_is_an_outcome(
    server: Server, url: str, send: Send, reason: str
) -> None:
    """
    A benchmark goes on when one of its requests fails, and says why it did.
    """
    server.send = send

    outcome = await asked(url, seconds=0.3)

    assert not outcome.is_answered
    assert outcome.error
    assert reason in outcome.error


async def test_a_refusal_is_an_outcome(server: Server, url: str) -> None:
    """
    Its status and its text are kept.
    """
    server.status = 503

    outcome = await asked(url)

    assert "503" in outcome.error
    assert "too busy" in outcome.error


async def test_hanging_up_ends_an_answer(server: Server, url: str) -> None:
    """
    Whoever is still being answered has an error at once, and not after its limit.
    """
    begun = asyncio.Event()

    async def without_an_end(response: web.StreamResponse) -> None:
        await write(response, choices=piece("a"))
        begun.set()
        await silence(response)

    server.send = without_an_end
    async with asyncio.timeout(5), connected(url, "", 20) as client:
        asking = asyncio.create_task(client.ask(ASKED))
        await begun.wait()
        client.hang_up()
        outcome = await asking

    assert outcome.error
