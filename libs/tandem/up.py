"""`tandem up`: one mesh as plain processes on this machine, from start to stop."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import (
    AbstractContextManager,
    ExitStack,
    asynccontextmanager,
    contextmanager,
)
from functools import partial
from pathlib import Path

from rich.console import Console

from device.mps import Mps, NoDaemon, look, own_daemon
from mesh.errors import ConfigurationError
from mesh.settings import PREFIX
from mesh.sprout import stem_socket
from tandem import plan, rundir
from tandem.control import answering, check_url
from tandem.loading import loaded
from tandem.scaling import Fleet, listening_for_scale
from tandem.supervisor import Supervisor, supervised

KNOWN_VARIABLES = {"TANDEM_REDIS_URL", "TANDEM_LOG_LEVEL", "TANDEM_LOG_FORMAT"}
BACKLOG = 1024  # connections that wait while the gateway is started again

console = Console(stderr=True, highlight=False)


def check_environment() -> None:
    """ConfigurationError names each variable that would be a setting and is none."""
    given = {name for name in os.environ if name.upper().startswith(PREFIX)}
    if unknown := sorted(given - KNOWN_VARIABLES):
        raise ConfigurationError(f"unknown setting: {', '.join(unknown)}")


def check_paradigm(
    paradigm: str, prefill: int | None, *, asks_shares: bool, device: str
) -> None:
    """ConfigurationError names an option that means nothing in this paradigm."""
    if paradigm == "fused" and prefill:
        raise ConfigurationError("fused has no --prefill: --decode counts its workers")
    if paradigm == "fused" and asks_shares:
        raise ConfigurationError(
            "fused has no --shares, and none follow an SLO: each worker does both phases"
        )
    if paradigm == "disaggregated" and device == "cuda":
        raise ConfigurationError(
            "disaggregated needs --device cpu: K/V is moved in the host's memory only"
        )


def run(options: plan.Options) -> None:
    """Run a mesh until SIGINT or SIGTERM; ConfigurationError (in a group) if it cannot."""
    if options.redis_url:
        check_url(options.redis_url)
    with ExitStack() as stack:
        if options.splits_gpu:
            stack.enter_context(mps_daemon())
        asyncio.run(_until_signal(options))


@contextmanager
def mps_daemon(
    look: Callable[[], Mps] = look,
    own_daemon: Callable[[], AbstractContextManager[dict[str, str]]] = own_daemon,
) -> Iterator[None]:
    """While inside, services find an MPS daemon: one of our own where there is none.

    Processes on two parts of a GPU run at the same time only as its clients.
    """
    try:
        with ExitStack() as stack:
            if not look().is_reachable:
                try:
                    os.environ |= stack.enter_context(own_daemon())
                except NoDaemon as error:
                    _tell(f"the GPU is not split: {error}")
            yield
    except NoDaemon as error:
        _tell(f"the MPS daemon does not quit: {error}")


async def _until_signal(options: plan.Options) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    with (
        rundir.take(options.run_dir) as run_dir,
        listening(options.host, options.port) as listener,
    ):
        await _serve(options, run_dir, listener, stopping)


async def _serve(
    options: plan.Options,
    run_dir: rundir.RunDir,
    listener: socket.socket,
    stopping: asyncio.Event,
) -> None:
    url = _url(options.host, listener)
    async with (
        supervised(run_dir.logs, _tell) as supervisor,
        growing(options, run_dir.sockets, supervisor),
        answering(options.redis_url, run_dir.sockets, supervisor, stopping) as (
            redis,
            redis_url,
        ),
    ):
        run_dir.publish(redis_url=redis_url, gateway_url=url, pool=options.pool)
        for command in plan.services(
            options, redis_url, run_dir.sockets, listener.fileno()
        ):
            supervisor.keep(command)
        command_of = partial(plan.worker, options, redis_url, run_dir.sockets)
        fleet = Fleet(supervisor, command_of, options.workers.counts)
        async with listening_for_scale(run_dir.sockets, fleet):
            if await loaded(options, redis, url, stopping):
                supervisor.is_loading = False
                print(f"ready {url}", flush=True)
            await stopping.wait()


@asynccontextmanager
async def growing(
    options: plan.Options, sockets: Path, supervisor: Supervisor
) -> AsyncIterator[None]:
    """Where workers are asked for, before and while there is a stem for them."""
    if options.stem or not options.has_stem:
        yield
        return
    with stem_socket(sockets / plan.STEM_SOCKET) as listener:
        supervisor.keep(plan.stem(listener.fileno()))
        yield


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that already listens: clients may come before the gateway does."""
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.create_server(address, family=family, backlog=BACKLOG)
    except OSError as error:
        reason = str(error.strerror).partition(" (while")[0]
        raise ConfigurationError(f"{host}:{port}: {reason}") from None
    with listener:
        yield listener


def _url(host: str, listener: socket.socket) -> str:
    port = listener.getsockname()[1]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _tell(news: str) -> None:
    console.print(f"tandem: {news}", markup=False, soft_wrap=True)
