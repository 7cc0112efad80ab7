"""What a client is told instead of an answer. Knows the shapes, not the causes.

* ApiError
  + InvalidRequest     400  as it stands, the request can never be served
    - BodyTooSlow      408  its body did not arrive in time
    - BodyTooLarge     413
    - UnknownModel     404
    - UnknownPool      404
  + Unavailable        503  not now: Retry-After says when to come back
    - Overloaded       503  too many requests are open
    - DeadlineExceeded 503  it took longer than any client should wait
  + RequestFailed      500  the mesh gave up on the request
"""

import json
from typing import Any, ClassVar


class ApiError(Exception):
    """Root of what a client may be told; its text is for that client."""

    status: ClassVar[int] = 500
    kind: ClassVar[str] = "server_error"
    code: ClassVar[str] = "internal_error"
    retry_after_seconds: ClassVar[int] = 0  # 0: coming back would not help

    def __init__(
        self, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.param = param
        self.code_given = code

    def body(self) -> bytes:
        return error_body(
            str(self), self.kind, self.code_given or self.code, self.param
        )


class InvalidRequest(ApiError):
    """As it stands, the request can never be served."""

    status = 400
    kind = "invalid_request_error"
    code = "invalid_value"


class UnknownModel(InvalidRequest):
    """The request names a model that is not served here."""

    status = 404
    code = "model_not_found"


class BodyTooSlow(InvalidRequest):
    """The request's body did not arrive in time."""

    status = 408
    code = "body_timeout"


class BodyTooLarge(InvalidRequest):
    """The request's body has more bytes than this gateway reads."""

    status = 413
    code = "body_too_large"


class UnknownPool(InvalidRequest):
    """The path names a pool that this gateway does not serve."""

    status = 404
    code = "pool_not_found"


class Unavailable(ApiError):
    """Not now: the mesh is starting, stopping, or parts of it are away."""

    status = 503
    kind = "service_unavailable_error"
    code = "unavailable"
    retry_after_seconds = 1


class Overloaded(Unavailable):
    """Too many requests are open."""

    code = "overloaded"


class DeadlineExceeded(Unavailable):
    """The answer took longer than any client should wait."""

    code = "timeout"


class RequestFailed(ApiError):
    """The mesh gave up on the request."""

    code = "request_failed"


def error_body(message: str, kind: str, code: str, param: str | None = None) -> bytes:
    """OpenAI's error object."""
    error: dict[str, Any] = {
        "message": message,
        "type": kind,
        "param": param,
        "code": code,
    }
    return json.dumps({"error": error}).encode()
