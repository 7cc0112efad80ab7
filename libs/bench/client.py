"""One client of any server that speaks OpenAI's API: asks, and looks at the clock."""

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from bench.measures import Outcome
from bench.workload import Planned
from mesh.errors import ConfigurationError

DATA = b"data: "
DONE = b"[DONE]"
# Whose servers can send each token, also one without text, by what they call themselves.
SENDING_EVERY_TOKEN = frozenset({"tandem", "vllm"})


class Client:
    """Streams completions from one server. Errors become part of the outcome."""

    def __init__(
        self, http: aiohttp.ClientSession, fields: dict[str, Any], *, is_plain: bool
    ) -> None:
        self._http = http
        self._fields = fields
        self._is_plain = is_plain
        self._open: set[aiohttp.ClientResponse] = set()
        self._has_hung_up = False

    def hang_up(self) -> None:
        """End what is still being answered, now: with an error, and what came so far."""
        self._has_hung_up = True
        for response in self._open:
            response.close()

    async def ask(self, planned: Planned) -> Outcome:
        """The answer's pieces by their times; never fails."""
        times: list[float] = []
        num_tokens = 0
        error = ""
        sent = time.monotonic()
        try:
            async for chunk in self._chunks(planned):
                if any(map(_is_piece, chunk["choices"])):
                    times.append(time.monotonic())
                if usage := chunk.get("usage"):
                    num_tokens = usage["completion_tokens"]
        except (aiohttp.ClientError, TimeoutError, ValueError, LookupError) as failure:
            error = str(failure) or type(failure).__name__
        return Outcome(
            sent=sent,
            times=tuple(times),
            num_prompt_tokens=len(planned.prompt),
            num_output_tokens=num_tokens or len(times),
            error=error,
        )

    async def _chunks(self, planned: Planned) -> AsyncIterator[dict[str, Any]]:
        body = self._body(planned)
        async with self._http.post("/v1/completions", json=body) as response:
            if response.status != 200:
                raise ValueError(f"HTTP {response.status}: {await response.text()}")
            if self._has_hung_up:
                raise ValueError("hung up")
            self._open.add(response)
            try:
                async for line in response.content:
                    event = line.strip()
                    if event.startswith(DATA) and not event.endswith(DONE):
                        yield _chunk(event.removeprefix(DATA))
            finally:
                self._open.discard(response)

    def _body(self, planned: Planned) -> dict[str, Any]:
        body = {
            **self._fields,
            "prompt": planned.prompt,
            "max_tokens": planned.max_tokens,
            "temperature": 0,
            "stream": True,
        }
        if self._is_plain:
            return body | {"prompt": " ".join(map(str, planned.prompt))}
        return body | {"ignore_eos": True, "stream_options": {"include_usage": True}}


def _chunk(data: bytes) -> dict[str, Any]:
    chunk = json.loads(data)
    if "error" in chunk:
        raise ValueError(str(chunk["error"]))
    return dict(chunk)


def _is_piece(choice: dict[str, Any]) -> bool:
    """Some servers tell the end in a chunk of its own, without a token; a last token
    may have no text."""
    has_token = choice.get("text") or choice.get("token_ids")
    return bool(has_token) or not choice.get("finish_reason")


@asynccontextmanager
async def connected(
    url: str, model: str, answer_seconds: float, *, is_plain: bool = False
) -> AsyncIterator[Client]:
    """A client of the server at `url`; an empty `model` is the first that it serves.

    A plain one sends nothing but fields of OpenAI's, and as prompts text. Others ask for
    each token where they may: a character's first bytes have no text, and a client that
    counts text alone sees a pause.
    Raises aiohttp.ClientError or TimeoutError when nobody answers there, and
    ConfigurationError when no model is known.
    """
    async with aiohttp.ClientSession(
        url,
        timeout=aiohttp.ClientTimeout(total=answer_seconds),
        # A new connection for each request: some servers close one that is kept just
        # when it is used again.
        connector=aiohttp.TCPConnector(limit=0, force_close=True),
        read_bufsize=1 << 20,
    ) as http:
        served = await _models(http)
        if not (model or served):
            raise ConfigurationError(f"{url} tells no model that it serves: name one")
        fields: dict[str, Any] = {"model": model or served[0]["id"]}
        owners = {each.get("owned_by") for each in served}
        if not is_plain and owners & SENDING_EVERY_TOKEN:
            fields["return_token_ids"] = True
        yield Client(http, fields, is_plain=is_plain)


async def _models(http: aiohttp.ClientSession) -> list[dict[str, Any]]:
    """None of a server that does not tell."""
    async with http.get("/v1/models") as response:
        if response.status != 200:
            return []
        return list((await response.json())["data"])
