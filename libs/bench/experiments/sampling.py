"""What a mesh of ours says of itself under load: memory in use, shares, decisions.

A peer says nothing of the kind, and that is no error.
"""

import asyncio
import time
from typing import Any

import aiohttp
from pydantic import BaseModel

SAMPLE_SECONDS = 1.0
MAX_LOOKS, LOOK_SECONDS = 40, 0.25


class Sample(BaseModel, frozen=True):
    """One look."""

    at: float  # seconds after the point's beginning
    used: dict[str, float]  # of each pool's KV blocks, 0 to 1
    shares: tuple[int, int]  # percent for prefill and for decode, in the first pool


class Decision(BaseModel, frozen=True):
    """What the gateway's controller made of one window."""

    at: float
    before: str
    shares: str
    reason: str
    load: float  # prompt tokens per second
    seen_ttft_seconds: float | None
    seen_tpot_seconds: float | None
    expected_ttft_seconds: float | None
    expected_tpot_seconds: float | None


class Watch:
    """Looks at one server again and again, from its beginning on."""

    def __init__(self, http: aiohttp.ClientSession) -> None:
        self._http = http
        self._began = time.monotonic()
        self._began_at = time.time()
        self.samples: list[Sample] = []

    async def run(self) -> None:
        """Until cancelled, or there is nothing to see."""
        while pools := await self._get("/v1/pools"):
            shares = pools[0]["shares"]
            self.samples.append(
                Sample(
                    at=round(time.monotonic() - self._began, 1),
                    used={pool["pool"]: _used(pool["blocks"]) for pool in pools},
                    shares=(shares["prefill"], shares["decode"]),
                )
            )
            await asyncio.sleep(SAMPLE_SECONDS)

    async def decisions(self) -> list[Decision]:
        """Since the beginning, the oldest first."""
        pools = await self._get("/v1/pools")
        if not pools:
            return []
        latest = await self._get(f"/v1/pools/{pools[0]['pool']}/decisions")
        return [
            Decision.model_validate(
                each | {"at": round(each["at"] - self._began_at, 1)}
            )
            for each in reversed(latest)
            if each["at"] >= self._began_at
        ]

    async def until_idle(self) -> None:
        """Until no block is held, or for a while; the next point begins with nothing."""
        for _ in range(MAX_LOOKS):
            pools = await self._get("/v1/pools")
            if not any(pool["blocks"]["referenced"] for pool in pools):
                return
            await asyncio.sleep(LOOK_SECONDS)

    async def _get(self, path: str) -> list[dict[str, Any]]:
        """Empty if the server has no such thing."""
        async with self._http.get(path) as response:
            if response.status != 200:
                return []
            return list((await response.json())["data"])


def _used(blocks: dict[str, int]) -> float:
    return round(blocks["referenced"] / blocks["total"], 4)
