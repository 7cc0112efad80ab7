"""A request's body, whole and within its limits."""

import asyncio

from aiohttp import web

from gateway.errors import BodyTooLarge, BodyTooSlow, InvalidRequest
from gateway.settings import Settings


async def body_of(request: web.Request, settings: Settings) -> bytes:
    """All of it within its time: a slow sender holds no place for long."""
    try:
        async with asyncio.timeout(settings.body_timeout_seconds):
            return await request.read()
    except TimeoutError:
        raise BodyTooSlow("The request's body did not arrive in time.") from None
    except web.HTTPRequestEntityTooLarge:
        raise BodyTooLarge(
            f"The request's body is larger than {settings.max_body_bytes} bytes."
        ) from None
    except web.RequestPayloadError as error:
        raise InvalidRequest(f"The body cannot be read: {error}") from None
