"""The `tandem` command. Each command is one module, imported when it is called."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from mesh.errors import ConfigurationError

EXIT_WRONG = 2

app = typer.Typer(
    name="tandem",
    help="LLM serving with prefill and decode as separate services over one "
    "shared KV cache.",
    pretty_exceptions_enable=False,
    add_completion=False,
)


class DType(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"


class Engine(StrEnum):
    transformer = "transformer"
    counting = "counting"


class LogLevel(StrEnum):
    debug = "debug"
    info = "info"
    warning = "warning"
    error = "error"


class LogFormat(StrEnum):
    auto = "auto"
    json = "json"
    text = "text"


RunDir = Annotated[
    Path, typer.Option(help="Directory of the mesh: logs, sockets, its address.")
]
RedisUrl = Annotated[
    str,
    typer.Option(
        envvar="TANDEM_REDIS_URL",
        help="Redis of the mesh, like redis://127.0.0.1:6379.",
        show_default=False,
    ),
]
DEFAULT_RUN_DIR = Path(".tandem")


@app.command()
def up(
    model: Annotated[
        str, typer.Option(help="A directory with config.json, or a hub id.")
    ],
    served_model_name: Annotated[
        str, typer.Option(help="The model's name for clients.", show_default="its own")
    ] = "",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")
    ] = 8000,
    prefill: Annotated[
        int, typer.Option(min=1, max=64, help="Number of prefill workers.")
    ] = 1,
    decode: Annotated[
        int, typer.Option(min=1, max=64, help="Number of decode workers.")
    ] = 1,
    kv_blocks: Annotated[
        int, typer.Option(min=1, help="KV blocks that all sequences share.")
    ] = 2048,
    block_size: Annotated[
        int, typer.Option(min=1, max=1024, help="Tokens in a KV block.")
    ] = 16,
    dtype: Annotated[
        DType, typer.Option(help="Of weights and KV blocks.")
    ] = DType.float32,
    max_model_len: Annotated[
        int,
        typer.Option(
            min=0,
            help="Tokens of prompt and output together.",
            show_default="what model and blocks allow",
        ),
    ] = 0,
    max_num_seqs: Annotated[
        int, typer.Option(min=1, max=4096, help="Sequences in a worker's batch.")
    ] = 64,
    threads: Annotated[
        int,
        typer.Option(
            min=0,
            max=1024,
            help="Threads of each worker.",
            show_default="cores / workers",
        ),
    ] = 0,
    pool: Annotated[
        str, typer.Option(help="Name of the pool, where meshes share a Redis.")
    ] = "default",
    run_dir: RunDir = DEFAULT_RUN_DIR,
    redis_url: RedisUrl = "",
    log_level: Annotated[
        LogLevel, typer.Option(envvar="TANDEM_LOG_LEVEL", help="Of all services.")
    ] = LogLevel.info,
    log_format: Annotated[
        LogFormat, typer.Option(envvar="TANDEM_LOG_FORMAT", help="Of all services.")
    ] = LogFormat.auto,
    engine: Annotated[Engine, typer.Option(hidden=True)] = Engine.transformer,
) -> None:
    """Start a mesh on this machine and keep it running until Ctrl-C.

    Prints `ready http://HOST:PORT` once a request would be answered. Without
    --redis-url a Redis of its own runs beside the services.
    """
    from tandem import models
    from tandem.plan import Options
    from tandem.up import check_environment, run

    check_environment()
    run(
        Options(
            model=models.find(model),
            served_model_name=served_model_name or models.name_of(model),
            host=host,
            port=port,
            prefill=prefill,
            decode=decode,
            kv_blocks=kv_blocks,
            block_size=block_size,
            dtype=dtype,
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            threads=threads,
            engine=engine,
            pool=pool,
            run_dir=run_dir,
            redis_url=redis_url,
            log_level=log_level,
            log_format=log_format,
        )
    )


@app.command()
def status(
    run_dir: RunDir = DEFAULT_RUN_DIR,
    redis_url: RedisUrl = "",
    json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Show the processes of a mesh and the state of its KV blocks."""
    from tandem.rundir import address_of
    from tandem.status import show

    show(redis_url or address_of(run_dir).redis_url, as_json=json)


def main() -> None:
    """Run the command; what a person got wrong is one line and exit code 2."""
    try:
        sys.exit(app(standalone_mode=False))
    except* (ConfigurationError, typer.TyperException) as group:
        print(f"tandem: {_one_line(group)}", file=sys.stderr)
        sys.exit(EXIT_WRONG)


def _one_line(error: BaseException) -> str:
    """The first error of a group of groups, without its line breaks."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    text = (
        error.format_message()
        if isinstance(error, typer.TyperException)
        else str(error)
    )
    return " ".join(text.split())


if __name__ == "__main__":
    main()
