"""Tells gateways what their sequences said, one message per gateway and step."""

import asyncio
from collections.abc import Mapping, Sequence
from itertools import chain

import structlog
from redis.asyncio import Redis

from mesh.connect import LOST
from mesh.streams import post
from mesh.timing import pause
from protocol import keys
from protocol.messages import TokenEvent, TokenEvents
from protocol.wire import encode

RETRY_SECONDS = 0.2

logger = structlog.get_logger()


async def publish(
    redis: Redis,
    events: Mapping[str, Sequence[TokenEvent]],
    stopping: asyncio.Event,
    pool: str = "",
) -> set[str]:
    """Post the events; returns the gateways that are gone.

    While Redis is away this waits: tokens must not be computed past what can be told.
    """
    letters = {
        keys.replies(gateway): {
            "body": encode(TokenEvents(events=tuple(said), pool=pool))
        }
        for gateway, said in events.items()
    }
    _log_first_tokens(events)
    while letters:
        try:
            gone = await post(redis, letters)
        except LOST as error:
            if stopping.is_set():
                raise
            logger.warning("publish.delayed", error=type(error).__name__)
            await pause(RETRY_SECONDS, stopping)
        else:
            return {gateway for gateway in events if keys.replies(gateway) in gone}
    return set()


def _log_first_tokens(events: Mapping[str, Sequence[TokenEvent]]) -> None:
    for event in chain.from_iterable(events.values()):
        if event.index == 0:
            logger.debug("tokens.posting", request_id=event.request_id)
