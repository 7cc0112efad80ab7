"""Server-sent events of a streamed answer, read as any client would."""

import json
from typing import Any

import aiohttp


async def events(response: aiohttp.ClientResponse) -> list[dict[str, Any]]:
    """Every event up to the closing [DONE], which must be the last."""
    assert response.headers["Content-Type"].startswith("text/event-stream")
    *lines, done = (await response.text()).split("\n\n")[:-1]
    assert done == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


async def first_event(response: aiohttp.ClientResponse) -> dict[str, Any]:
    """The next event of a stream that goes on."""
    line = await response.content.readline()
    assert await response.content.readline() == b"\n"
    return dict(json.loads(line.removeprefix(b"data: ")))
