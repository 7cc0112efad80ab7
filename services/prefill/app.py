"""A worker whose jobs are those of the prefill stream."""

import asyncio

from prefill.settings import Settings
from worker.app import Worker


async def serve(settings: Settings, worker_id: str, stopping: asyncio.Event) -> None:
    await Worker("prefill", settings, worker_id).serve(stopping)
