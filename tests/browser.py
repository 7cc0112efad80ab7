"""A real browser, spoken to by its own debugging protocol; none to be had: skipped."""

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import aiohttp
import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
OPTIONS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run")
START_SECONDS = 30


class Tab:
    """One page of it."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = count(1)
        self._session: dict[str, str] = {}
        self.complaints: list[str] = []  # uncaught errors, and what its policy forbade

    async def open(self, url: str) -> None:
        target = await self.call("Target.createTarget", url="about:blank")
        attached = await self.call(
            "Target.attachToTarget", targetId=target["targetId"], flatten=True
        )
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Runtime", "Log", "Page"):
            await self.call(f"{domain}.enable")
        await self.call("Page.navigate", url=url)

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params, **self._session}
        await self._socket.send_json(message)
        while True:
            heard = await self._socket.receive_json(timeout=START_SECONDS)
            self._note(heard)
            if heard.get("id") == number:
                assert "error" not in heard, heard
                return dict(heard["result"])

    async def value(self, expression: str) -> Any:
        """What a script says."""
        answer = await self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def text(self, selector: str) -> str:
        """All that a person reads there."""
        shown = "[...document.querySelectorAll({!r})].map(e => e.innerText).join('\\n')"
        return str(await self.value(shown.format(selector)))

    def _note(self, heard: dict[str, Any]) -> None:
        params = heard.get("params", {})
        match heard.get("method"):
            case "Runtime.exceptionThrown":
                self.complaints.append(str(params["exceptionDetails"]))
            case "Log.entryAdded" if params["entry"]["source"] == "security":
                self.complaints.append(params["entry"]["text"])


@asynccontextmanager
async def browser() -> AsyncIterator[Tab]:
    """A browser of our own, with one tab."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f"no browser here: none of {', '.join(NAMES)}")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = await asyncio.create_subprocess_exec(
            path,
            *OPTIONS,
            "--remote-debugging-port=0",
            f"--user-data-dir={profile}",
            env=os.environ | {"TMPDIR": profile},
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            url = await asyncio.wait_for(_debugger(process), START_SECONDS)
            async with (
                aiohttp.ClientSession() as http,
                http.ws_connect(url, max_msg_size=0) as socket,
            ):
                tab = Tab(socket)
                yield tab
        finally:
            process.kill()
            await process.wait()


async def _debugger(process: asyncio.subprocess.Process) -> str:
    """Where it listens, as it says on stderr."""
    assert process.stderr is not None
    async for line in process.stderr:
        if line.startswith(b"DevTools listening on "):
            return line.split()[-1].decode()
    raise AssertionError("the browser did not start")
