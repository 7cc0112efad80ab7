"""A worker whose jobs are those of the decode stream."""

import asyncio

from decode.settings import Settings
from worker.app import Worker


async def serve(settings: Settings, worker_id: str, stopping: asyncio.Event) -> None:
    await Worker("decode", settings, worker_id).serve(stopping)
