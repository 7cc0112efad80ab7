"""What is up while a mesh loads, as one line on a terminal, until it would answer."""

import asyncio
import time
from collections import Counter

import aiohttp
from redis.asyncio import Redis
from rich.console import Console

from mesh.connect import LOST
from mesh.timing import pause
from tandem.plan import Options
from tandem.status import processes

POLL_SECONDS = 0.1
ANSWER_SECONDS = 1.0  # of /ready; before the gateway runs, the question just waits


async def loaded(
    options: Options, redis: Redis, url: str, stopping: asyncio.Event
) -> bool:
    """Wait until the gateway says that it would answer; False when told to stop."""
    with Console(stderr=True).status("starting") as line:
        started = time.monotonic()
        timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS)
        async with aiohttp.ClientSession(timeout=timeout) as http:
            while not stopping.is_set() and not await _is_ready(http, url):
                up = await _num_ready(redis)
                line.update(_in_words(options, up, time.monotonic() - started))
                await pause(POLL_SECONDS, stopping)
    return not stopping.is_set()


async def _is_ready(http: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with http.get(f"{url}/ready") as response:
            return response.status == 200
    except (aiohttp.ClientError, TimeoutError):
        return False


async def _num_ready(redis: Redis) -> Counter[str]:
    """How many processes of each service say that they would do their work."""
    try:
        return Counter(
            process.service for process in await processes(redis) if process.ready
        )
    except LOST:
        return Counter()


def _in_words(options: Options, up: Counter[str], seconds: float) -> str:
    wanted = {"kvstore": options.workers.stores, **options.workers.counts, "gateway": 1}
    parts = [
        f"[{'green' if up[service] >= count else 'yellow'}]"
        f"{service} {up[service]}/{count}[/]"
        for service, count in wanted.items()
    ]
    return f"loading {options.served_model_name}: {'  '.join(parts)}  {seconds:.0f} s"
