"""The page for people: how it is served, and that what it reads is there."""

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from fake_pool import FakePool, decision

from gateway.live_page import PARTS, load_page
from mesh.streams import send
from protocol import keys
from protocol.wire import encode

SCRIPTS = "\n".join(path.read_text() for path in sorted(PARTS.glob("*.js")))


def names_read_of(thing: str) -> set[str]:
    """Fields that the scripts take of what they call so."""
    return set(re.findall(rf"\b{thing}\??\.(\w+)", SCRIPTS))


async def read(client: aiohttp.ClientSession, route: str) -> Any:
    async with client.get(route) as response:
        assert response.status == 200, await response.text()
        return await response.json()


async def test_the_page_may_run_its_own_scripts_and_nothing_else(
    client: aiohttp.ClientSession,
) -> None:
    """
    One document holds all of it; its policy names its scripts and style by their hashes,
    and it is kept by nobody.
    """
    async with client.get("/") as response:
        html, headers = await response.text(), response.headers

    policy = headers["Content-Security-Policy"]
    parts = re.findall(r"<(?:script|style)>(.*?)</(?:script|style)>", html, re.DOTALL)
    digests = [hashlib.sha256(part.encode()).digest() for part in parts]
    assert len(parts) == len(list(PARTS.glob("*.js"))) + 1
    assert all(base64.b64encode(digest).decode() in policy for digest in digests)
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert response.content_type == "text/html"
    assert headers["Cache-Control"] == "no-store"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert not re.findall(r"(?:src|href)=\"(?:https?:)?//", html)


def test_data_never_becomes_markup() -> None:
    """
    No script writes HTML or makes code of text: what the mesh says is text.
    """
    assert not re.findall(
        r"innerHTML|outerHTML|insertAdjacent|\.write\(|eval\(|Function\(", SCRIPTS
    )


def test_a_part_that_is_not_there_stops_the_start(tmp_path: Path) -> None:
    """
    A page without its script would be found out by a person; so it is found out before.
    """
    (tmp_path / "index.html").write_text('<script src="gone.js"></script>')

    with pytest.raises(FileNotFoundError, match="gone"):
        load_page(tmp_path)


async def test_the_page_asks_only_routes_that_exist(
    client: aiohttp.ClientSession,
) -> None:
    """
    Whatever the scripts fetch is served; a route of another method says so.
    """
    named = re.findall(r"""(?:asked|fetch)\(["`]([^"`]+)["`]""", SCRIPTS)
    routes = [re.sub(r"\$\{enc\w+\(name\)\}", "default", route) for route in named]
    routes = [route.replace("${limit}", "10") for route in routes]

    answers = {}
    for route in routes:
        async with client.get(f"/{route}") as response:
            answers[route] = response.status

    assert answers == {
        "v1/chat/completions": 405,
        "v1/pools": 200,
        "metrics": 200,
        "v1/pools/default/decisions?limit=10": 200,
    }


async def test_every_field_that_the_page_reads_is_shown(
    client: aiohttp.ClientSession, pool: FakePool, redis: Any
) -> None:
    """
    Of a pool, its blocks and counts, its workers, the SLO and decisions.
    """
    await send(redis, keys.decisions(pool.name), {"body": encode(decision())})

    pools = await read(client, "/v1/pools")
    decisions = await read(client, "/v1/pools/default/decisions")

    (shown,), (decided,) = pools["data"], decisions["data"]
    for thing, found in {
        "pool": shown,
        "blocks": shown["blocks"],
        "counts": shown["counts"],
        "worker": shown["workers"][0],
        "slo": pools["slo"],
        "decision": decided,
        "before": decided,
    }.items():
        assert names_read_of(thing), thing
        assert names_read_of(thing) <= set(found), thing


async def test_every_metric_that_the_page_reads_is_exported(
    client: aiohttp.ClientSession,
) -> None:
    """
    Names of counters and histograms are those of /metrics.
    """
    named = set(re.findall(r'"((?:tandem|process)_\w+)"', SCRIPTS))

    async with client.get("/metrics") as response:
        text = await response.text()

    assert len(named) > 5
    assert {name for name in named if name not in text} == set()
