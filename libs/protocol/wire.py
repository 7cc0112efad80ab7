"""Messages as bytes: frozen pydantic models in msgpack. Knows no particular message."""

from typing import Any, Generic, Self, TypeVar

import msgpack
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

M = TypeVar("M")


class MalformedMessage(ValueError):
    """The bytes are no message of the expected kind; the text says why."""


class Message(BaseModel):
    """What one process says to another: immutable, and no field goes unnoticed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def changed(self, **fields: Any) -> Self:
        """A copy with some fields replaced; the new values are trusted."""
        return self.model_copy(update=fields)


def encode(message: Message) -> bytes:
    return bytes(msgpack.packb(message, default=vars))


class Decoder(Generic[M]):
    """Reads back one kind of message, or one of a union told apart by its tag."""

    def __init__(self, kind: Any) -> None:
        self._adapter: TypeAdapter[M] = TypeAdapter(kind)

    def __call__(self, body: bytes) -> M:
        try:
            return self._adapter.validate_python(msgpack.unpackb(body))
        except ValidationError as error:
            # The input is left out: it may hold a prompt, and this text is logged.
            raise MalformedMessage(
                "; ".join(
                    f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
                    for problem in error.errors(include_input=False, include_url=False)
                )
            ) from None
        except (ValueError, msgpack.UnpackException) as error:
            raise MalformedMessage(f"not msgpack: {type(error).__name__}") from None
