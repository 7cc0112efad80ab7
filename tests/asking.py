"""Completions over HTTP, as any client would ask for them."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp

TIMEOUT = aiohttp.ClientTimeout(total=120)


@dataclass
class Streamed:
    """What a streamed completion brought."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None
    times: list[float] = field(default_factory=list, compare=False)  # of each token


async def complete(url: str, **request: Any) -> dict[str, Any]:
    """The whole answer to one completion; an AssertionError if it is not one."""
    async with (
        aiohttp.ClientSession(timeout=TIMEOUT) as session,
        session.post(f"{url}/v1/completions", json=body(request)) as response,
    ):
        answer = await response.json()
        assert response.status == 200, answer
        return dict(answer)


async def stream(
    url: str,
    on_tokens: Callable[[int], object] = lambda num_tokens: None,
    **request: Any,
) -> Streamed:
    """A streamed completion; `on_tokens` hears how many tokens there are by now."""
    streamed = Streamed()
    async with (
        aiohttp.ClientSession(timeout=TIMEOUT, read_bufsize=1 << 20) as session,
        session.post(
            f"{url}/v1/completions", json=body(request) | {"stream": True}
        ) as response,
    ):
        assert response.status == 200, await response.text()
        async for line in response.content:
            event = line.removeprefix(b"data: ").strip()
            if not event or event == b"[DONE]":
                continue
            chunk = json.loads(event)
            assert "error" not in chunk, chunk
            streamed.usage = chunk.get("usage") or streamed.usage
            now = time.monotonic()
            for choice in chunk["choices"]:
                token_ids = choice.get("token_ids") or []
                streamed.text += choice["text"]
                streamed.token_ids += token_ids
                streamed.times += [now] * len(token_ids)
                streamed.finish_reason = choice["finish_reason"]
                on_tokens(len(streamed.token_ids))
    return streamed


def body(request: dict[str, Any]) -> dict[str, Any]:
    return {"model": "test", "temperature": 0, "return_token_ids": True} | request
