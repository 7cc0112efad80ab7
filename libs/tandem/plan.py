"""Which processes make a mesh, each with its command line and environment. Only data."""

import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from mesh.errors import ConfigurationError
from mesh.settings import PREFIX
from tandem.supervisor import Command

REDIS_LAYER, STORE_LAYER, SERVICE_LAYER = range(3)  # the stem is with Redis
SOCKET, DECODE_SOCKET, STEM_SOCKET = "kvstore.sock", "decode.sock", "stem.sock"

LADDER_OF_SLO = "30,40,50,60,70"  # of a GPU whose shares follow an SLO

# semi: a worker does one phase, and a pool has workers of both.
# fused: each worker does both, its prompts in chunks beside the tokens it decodes.
# disaggregated: a pool for each phase, between which the K/V of prompts is moved.
Paradigm = Literal["semi", "fused", "disaggregated"]


@dataclass(frozen=True, slots=True)
class Store:
    """The store's own settings, by their names."""

    kv_blocks: int
    block_size: int
    max_model_len: int
    check_seconds: float
    device: str = "cpu"
    cuda_sharing: str = "auto"
    require_zero_copy: bool = False


@dataclass(frozen=True, slots=True)
class Workers:
    """How many workers, and what each is like."""

    prefill: int  # that semi has; fused has none
    decode: int
    dtype: str
    engine: str
    max_num_seqs: int
    threads: int  # of each at most; 0: as many as there are cores
    device: str = "cpu"
    shares: int = 0  # percent for prefill at first; 0: what the store gives
    paradigm: Paradigm = "semi"
    max_num_batched_tokens: int = 0  # of one step; 0: what suits the device
    quantization: str = "none"
    share_ladder: str = ""  # of a GPU: percents for prefill to change to, by commas

    def __post_init__(self) -> None:
        asked = self.dtype, self.device
        if self.quantization == "int8" and asked != ("bfloat16", "cpu"):
            raise ConfigurationError(
                "--quantization int8 needs --dtype bfloat16 and --device cpu"
            )

    @property
    def stores(self) -> int:
        """How many pools they are attached to."""
        return 2 if self.paradigm == "disaggregated" else 1

    @property
    def counts(self) -> dict[str, int]:
        """How many there are of each service."""
        if self.paradigm == "fused":
            return {"decode": self.decode}
        return {"prefill": self.prefill, "decode": self.decode}


@dataclass(frozen=True, slots=True)
class SLO:
    """What the shares are to follow; 0: there is none of the kind."""

    ttft_seconds: float = 0.0
    tpot_seconds: float = 0.0
    percentile: int = 90
    window_seconds: float = 5.0

    @property
    def is_set(self) -> bool:
        return bool(self.ttft_seconds or self.tpot_seconds)


@dataclass(frozen=True, slots=True)
class Options:
    """What `tandem up` was asked for."""

    model: Path
    served_model_name: str
    host: str
    port: int
    store: Store
    workers: Workers
    pool: str
    pools: str  # to which the gateway sends requests, by commas
    run_dir: Path
    redis_url: str  # empty: an embedded Redis
    log_level: str
    log_format: str
    slo: SLO = SLO()
    stem: Path | None = None  # the socket of one that other meshes use, too

    @property
    def share_ladder(self) -> str:
        """The splits of a GPU that workers make; empty: one if it is asked for."""
        return self.workers.share_ladder or (LADDER_OF_SLO if self.slo.is_set else "")

    @property
    def splits_gpu(self) -> bool:
        asked = self.workers.shares or self.share_ladder
        return self.workers.device == "cuda" and bool(asked)

    @property
    def has_stem(self) -> bool:
        """Whether workers are forks of one process that has imported torch.

        On a GPU each imports it by itself: forking with its libraries is untried.
        """
        return self.workers.engine == "transformer" and self.workers.device == "cpu"

    @property
    def decode_pool(self) -> str:
        """Where decode workers are: this pool, unless K/V is moved to them."""
        is_moved = self.workers.paradigm == "disaggregated"
        return f"{self.pool}-decode" if is_moved else self.pool


def stem(listen_fd: int) -> Command:
    """What workers are forked from."""
    command = _service("worker.stem", 0, {}, layer=REDIS_LAYER, pass_fds=(listen_fd,))
    return replace(command, name="stem", argv=(*command.argv, str(listen_fd)))


def services(
    options: Options, redis_url: str, sockets: Path, listen_fd: int
) -> Iterator[Command]:
    """The stores and the gateway."""
    everyone = _everyone(options, redis_url)
    store = {**everyone, "store_socket": sockets / SOCKET, **asdict(options.store)}
    store["shares"] = options.workers.shares
    if options.decode_pool != options.pool:
        decode = {
            **store,
            "pool": options.decode_pool,
            "store_socket": sockets / DECODE_SOCKET,
        }
        yield _service("kvstore", 1, decode, layer=STORE_LAYER)
        store["handoff_pool"] = options.decode_pool
    yield _service("kvstore", 0, store, layer=STORE_LAYER)
    gateway = {
        **everyone,
        "pools": options.pools,
        "model": options.model,
        "served_model_name": options.served_model_name,
        "listen_fd": listen_fd,
        "slo_ttft_seconds": options.slo.ttft_seconds,
        "slo_tpot_seconds": options.slo.tpot_seconds,
        "slo_percentile": options.slo.percentile,
        "control_window_seconds": options.slo.window_seconds,
    }
    yield _service("gateway", 0, gateway, pass_fds=(listen_fd,))


def worker(
    options: Options, redis_url: str, sockets: Path, service: str, number: int
) -> Command:
    """One of the workers of a kind."""
    settings: dict[str, object] = {
        **_everyone(options, redis_url),
        **_worker(options),
        "store_socket": sockets / SOCKET,
    }
    if service == "decode":
        settings["max_num_seqs"] = options.workers.max_num_seqs
        if options.workers.paradigm != "semi":
            # Disaggregated: what was preempted is computed again where it is.
            settings["phases"] = "both"
        if options.decode_pool != options.pool:
            settings["pool"] = options.decode_pool
            settings["store_socket"] = sockets / DECODE_SOCKET
    if not options.has_stem:
        return _service(service, number, settings)
    socket = settings["stem_socket"] = options.stem or sockets / STEM_SOCKET
    return replace(_service(service, number, settings), stem=socket)


def _everyone(options: Options, redis_url: str) -> dict[str, object]:
    return {
        "redis_url": redis_url,
        "pool": options.pool,
        "log_level": options.log_level,
        "log_format": options.log_format,
    }


def _worker(options: Options) -> dict[str, object]:
    workers = options.workers
    return {
        "model": options.model,
        "dtype": workers.dtype,
        "quantization": workers.quantization,
        "engine": workers.engine,
        "threads": workers.threads,
        "device": workers.device,
        "shares": workers.shares,
        "share_ladder": options.share_ladder if options.splits_gpu else "",
        "require_zero_copy": options.store.require_zero_copy,
        "max_num_batched_tokens": workers.max_num_batched_tokens,
    }


def _service(
    service: str,
    number: int,
    settings: Mapping[str, object],
    *,
    layer: int = SERVICE_LAYER,
    pass_fds: tuple[int, ...] = (),
) -> Command:
    env = inherited(os.environ)
    env |= {f"{PREFIX}{name.upper()}": str(value) for name, value in settings.items()}
    # The model is a directory by now, and tokenisers must not start threads of their own.
    env |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    # -P: a folder of the same name where the command was typed is not the service.
    argv = (sys.executable, "-P", "-m", service)
    return Command(f"{service}-{number}", argv, env, layer, pass_fds)


def inherited(environ: Mapping[str, str]) -> dict[str, str]:
    """An environment in which no setting is made by accident."""
    return {name: v for name, v in environ.items() if not name.startswith(PREFIX)}
