"""More workers or fewer while a mesh runs: `tandem scale` asks, `tandem up` does it.

They talk over a Unix socket in the run directory, one JSON line each way.
"""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mesh.errors import ConfigurationError
from tandem.supervisor import Command, Supervisor

SOCKET = "up.sock"
ASK_SECONDS = 30.0  # a worker that is stopped leaves its sequences to others first
MAX_LINE_BYTES = 4096


class Wanted(BaseModel):
    """How many workers of a kind there shall be; None: as many as now."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prefill: int | None = Field(default=None, ge=1, le=64)
    decode: int | None = Field(default=None, ge=1, le=64)


class Fleet:
    """The workers that a supervisor keeps."""

    def __init__(
        self,
        supervisor: Supervisor,
        command_of: Callable[[str, int], Command],
        counts: Mapping[str, int],
    ) -> None:
        self._supervisor = supervisor
        self._command_of = command_of
        self._scaling = asyncio.Lock()
        self.counts = dict.fromkeys(counts, 0)
        for service, count in counts.items():
            self._grow(service, count)

    async def scale(self, wanted: Wanted) -> dict[str, int]:
        """Start what is missing, stop the newest of what is too many.

        ConfigurationError for a kind of worker that this mesh does without.
        """
        counts = wanted.model_dump(exclude_none=True)
        if others := sorted(counts.keys() - self.counts.keys()):
            known = " and ".join(self.counts)
            raise ConfigurationError(f"this mesh has {known} workers, no {others[0]}")
        async with self._scaling:
            for service, count in counts.items():
                self._grow(service, count)
                await self._shrink(service, count)
            return dict(self.counts)

    async def _shrink(self, service: str, count: int) -> None:
        surplus = range(count, self.counts[service])
        names = [self._command_of(service, number).name for number in surplus]
        self.counts[service] = count
        async with asyncio.TaskGroup() as tasks:
            for name in names:
                tasks.create_task(self._supervisor.let_go(name), name=f"stop {name}")

    def _grow(self, service: str, count: int) -> None:
        for number in range(self.counts[service], count):
            self._supervisor.keep(self._command_of(service, number))
        self.counts[service] = max(count, self.counts[service])


@asynccontextmanager
async def listening_for_scale(sockets: Path, fleet: Fleet) -> AsyncIterator[None]:
    """Do what `ask` asks, while the block lasts."""

    async def answer(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            async with asyncio.timeout(ASK_SECONDS):
                line = await reader.readline()
            # Not under the limit: a child that is told to stop has its own.
            counts = await fleet.scale(Wanted.model_validate_json(line))
            reply: dict[str, object] = {"counts": counts}
        except (ConfigurationError, ValueError, TimeoutError) as error:
            reply = {"error": str(error).partition("\n")[0]}
        writer.write(json.dumps(reply).encode() + b"\n")
        writer.close()

    server = await asyncio.start_unix_server(
        answer, sockets / SOCKET, limit=MAX_LINE_BYTES
    )
    async with server:
        yield


def ask(sockets: Path, wanted: Wanted) -> dict[str, int]:
    """Have the mesh of these sockets scaled; how many workers it has then."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(ASK_SECONDS)
            connection.connect(str(sockets / SOCKET))
            connection.sendall(wanted.model_dump_json().encode() + b"\n")
            reply = json.loads(connection.makefile().readline())
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"the mesh cannot be scaled: {error}") from None
    if "error" in reply:
        raise ConfigurationError(reply["error"])
    return dict(reply["counts"])


def parsed(words: list[str]) -> Wanted:
    """`decode=3 prefill=2` as a wish; ConfigurationError if it is none."""
    fields = dict(word.partition("=")[::2] for word in words)
    try:
        return Wanted.model_validate(fields)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        name = ".".join(map(str, problem["loc"]))
        raise ConfigurationError(
            f"{name}: {problem['msg']}; say it like decode=3"
        ) from None
