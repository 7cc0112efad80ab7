"""The options of the commands: their kinds, limits and help."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

from typer import Argument, Option


class DTypeName(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"


class EngineName(StrEnum):
    transformer = "transformer"
    counting = "counting"


class LogLevelName(StrEnum):
    debug = "debug"
    info = "info"
    warning = "warning"
    error = "error"


class LogFormatName(StrEnum):
    auto = "auto"
    json = "json"
    text = "text"


Model = Annotated[
    str,
    Option(
        help="A directory with config.json, or a hub id.",
        show_default="the demo model",
    ),
]
ServedModelName = Annotated[
    str, Option(help="The model's name for clients.", show_default="its own")
]
Host = Annotated[str, Option(help="Address to listen on.")]
Port = Annotated[int, Option(min=0, max=65535, help="Port; 0 takes a free one.")]
Prefill = Annotated[int, Option(min=1, max=64, help="Number of prefill workers.")]
Decode = Annotated[int, Option(min=1, max=64, help="Number of decode workers.")]
KVBlocks = Annotated[int, Option(min=1, help="KV blocks that all sequences share.")]
BlockSize = Annotated[int, Option(min=1, max=1024, help="Tokens in a KV block.")]
DType = Annotated[DTypeName, Option(help="Of weights and KV blocks.")]
MaxModelLen = Annotated[
    int,
    Option(
        min=0,
        help="Tokens of prompt and output together.",
        show_default="what model and blocks allow",
    ),
]
MaxNumSeqs = Annotated[
    int, Option(min=1, max=4096, help="Sequences in a decode worker's batch.")
]
Threads = Annotated[
    int,
    Option(
        min=0, max=1024, help="Threads of each worker.", show_default="cores / workers"
    ),
]
Pool = Annotated[str, Option(help="Name of the pool, where meshes share a Redis.")]
RunDir = Annotated[
    Path, Option(help="Directory of the mesh: logs, sockets, its address.")
]
RedisUrl = Annotated[
    str,
    Option(
        envvar="TANDEM_REDIS_URL",
        help="Redis of the mesh, like redis://127.0.0.1:6379.",
        show_default=False,
    ),
]
LogLevel = Annotated[LogLevelName, Option(envvar="TANDEM_LOG_LEVEL")]
LogFormat = Annotated[LogFormatName, Option(envvar="TANDEM_LOG_FORMAT")]
Engine = Annotated[EngineName, Option(hidden=True)]
AsJson = Annotated[bool, Option("--json", help="For programs.")]
Url = Annotated[
    str,
    Option(help="Of any gateway, like http://127.0.0.1:8000.", show_default=False),
]
Workers = Annotated[
    list[str], Argument(help="Like decode=3 or prefill=2.", metavar="KIND=NUMBER...")
]
Seed = Annotated[int, Option(min=0, help="Draws the questions.")]
Count = Annotated[int, Option(min=1, max=10_000, help="Questions of each family.")]
