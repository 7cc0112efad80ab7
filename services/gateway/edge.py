"""What every HTTP request gets: an id, and errors in OpenAI's shape. Knows no route."""

import re
import secrets
from collections.abc import Awaitable, Callable

import structlog
from aiohttp import web

from gateway.errors import (
    ApiError,
    BodyTooLarge,
    BodyTooSlow,
    InvalidRequest,
    Unavailable,
    error_body,
)
from gateway.respond import IS_STREAMING
from mesh import metrics

REQUEST_ID = web.RequestKey("request_id", str)
HEADER = "X-Request-Id"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

logger = structlog.get_logger()


def edge_application(max_body_bytes: int) -> web.Application:
    """An application without routes whose errors are all in OpenAI's shape."""
    app = web.Application(client_max_size=max_body_bytes, middlewares=[_in_shape])
    app.on_response_prepare.append(_add_request_id)
    return app


@web.middleware
async def _in_shape(request: web.Request, handler: Handler) -> web.StreamResponse:
    request[REQUEST_ID] = _request_id(request.headers.get(HEADER, ""))
    try:
        return await handler(request)
    except ApiError as error:
        _count(error)
        return _response(error)
    except web.HTTPError as error:
        return _translated(error)
    except Exception:
        logger.exception("request.crashed", http_request_id=request[REQUEST_ID])
        if request.get(IS_STREAMING):
            raise  # the answer has begun: nothing but closing is left
        return _response(ApiError("The server made a mistake."))


async def _add_request_id(request: web.Request, response: web.StreamResponse) -> None:
    response.headers[HEADER] = request[REQUEST_ID]


def _request_id(given: str) -> str:
    """The client's own id, if it is one."""
    if re.fullmatch(r"[!-~]{1,128}", given):
        return given
    return secrets.token_hex(16)


def _count(error: ApiError) -> None:
    if isinstance(error, InvalidRequest | Unavailable):
        metrics.REJECTIONS.labels(error.code).inc()


def _response(error: ApiError) -> web.Response:
    response = web.Response(
        status=error.status, body=error.body(), content_type="application/json"
    )
    if error.retry_after_seconds:
        response.headers["Retry-After"] = str(error.retry_after_seconds)
    if isinstance(error, BodyTooSlow | BodyTooLarge):
        response.force_close()  # the rest of the body is not worth reading
    return response


def _translated(error: web.HTTPError) -> web.Response:
    """aiohttp's own errors, such as an unknown path."""
    code = error.reason.lower().replace(" ", "_")
    kind = "invalid_request_error" if error.status < 500 else "server_error"
    headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
    return web.Response(
        status=error.status,
        body=error_body(f"{error.reason}.", kind, code),
        content_type="application/json",
        headers=headers,
    )
