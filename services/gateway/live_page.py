"""The page for people: one document with its style and scripts inside. Knows no data.

What it shows it asks of the other routes, so who may not ask them sees nothing by it.
"""

import base64
import hashlib
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

PARTS = Path(__file__).parent / "page"
NAMED_PART = re.compile(
    r'<link rel="stylesheet" href="(?P<style>[\w.]+)">'
    r'|<script src="(?P<script>[\w.]+)"></script>'
)


@dataclass(frozen=True, slots=True)
class Page:
    """What is sent."""

    html: str
    policy: str  # what a browser lets it do: run these scripts, ask this server


def load_page(parts: Path = PARTS) -> Page:
    """The document, with each file that it names put in its place."""
    hashes = defaultdict[str, list[str]](list)

    def inlined(found: re.Match[str]) -> str:
        tag = str(found.lastgroup)
        text = (parts / found[tag]).read_text(encoding="utf-8")
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        hashes[tag].append(f"'sha256-{digest}'")
        return f"<{tag}>{text}</{tag}>"

    document = (parts / "index.html").read_text(encoding="utf-8")
    html = NAMED_PART.sub(inlined, document)
    return Page(html, _policy(hashes["style"], hashes["script"]))


def add_page_route(app: web.Application, page: Page) -> None:
    headers = {
        "Content-Security-Policy": page.policy,
        "Cache-Control": "no-store",  # another version may serve here at any time
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }

    async def show(_: web.Request) -> web.Response:
        return web.Response(text=page.html, content_type="text/html", headers=headers)

    app.router.add_get("/", show)


def _policy(styles: list[str], scripts: list[str]) -> str:
    """Nothing from elsewhere, nothing made of data, in nobody's frame."""
    return "; ".join(
        [
            "default-src 'none'",
            f"style-src {' '.join(styles)}",
            f"script-src {' '.join(scripts)}",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        ]
    )
