"""Which systems are compared: one mesh under different settings, and peers that serve."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from bench.measures import SLO
from mesh.errors import ConfigurationError

SPLITS = 50, 60, 70, 80  # percent for prefill


@dataclass(frozen=True, slots=True)
class System:
    """A mesh to start with these options of `tandem up`, or a server at `url`."""

    name: str
    options: tuple[str, ...] = ()
    shares: tuple[int, int] | None = None  # of prefill and decode, set once it serves
    url: str = ""

    @property
    def is_ours(self) -> bool:
        return not self.url


def _fused(blocks: int, _: SLO) -> System:
    return System("fused", ("--paradigm", "fused", "--kv-blocks", str(blocks)))


def _in_small_chunks(blocks: int, slo: SLO) -> System:
    """For a TPOT that a step with 512 tokens of a prompt breaks."""
    options = (*_fused(blocks, slo).options, "--max-num-batched-tokens", "128")
    return System("fused-128", options)


def _disaggregated(blocks: int, _: SLO) -> System:
    """A device for each phase: half of the cores and of the memory."""
    threads = max(1, (os.cpu_count() or 1) // 2)
    options = _apart(blocks)
    return System("disaggregated", (*options, "--threads", str(threads)))


def _competing(blocks: int, _: SLO) -> System:
    """Half of the memory each; for the cores both phases compete."""
    return System("disaggregated-100", _apart(blocks))


def _apart(blocks: int) -> tuple[str, ...]:
    return "--paradigm", "disaggregated", "--kv-blocks", str(blocks // 2)


def _by_queue(blocks: int, _: SLO) -> System:
    return System("semi", ("--kv-blocks", str(blocks)))


def _split(percent: int) -> Callable[[int, SLO], System]:
    """So much for prefill, the rest for decode."""

    def system(blocks: int, _: SLO) -> System:
        shares = percent, 100 - percent
        return System(f"semi-{percent}", ("--kv-blocks", str(blocks)), shares)

    return system


def _whole(blocks: int, _: SLO) -> System:
    return System("semi-100", ("--kv-blocks", str(blocks)), (100, 100))


def _dynamic(blocks: int, slo: SLO) -> System:
    """Shares by the controller. ConfigurationError without SLOs."""
    if not (slo.ttft and slo.tpot):
        raise ConfigurationError(
            "semi-dynamic comes after another system, or with --ttft-slo and --tpot-slo"
        )
    options = ["--kv-blocks", str(blocks)]
    options += ["--slo-ttft", f"{slo.ttft:.4f}"]
    options += ["--slo-tpot", f"{slo.tpot:.4f}"]
    return System("semi-dynamic", tuple(options))


KINDS: dict[str, Callable[[int, SLO], System]] = {
    "fused": _fused,
    "fused-128": _in_small_chunks,
    "disaggregated": _disaggregated,
    "disaggregated-100": _competing,
    "semi": _by_queue,
    **{f"semi-{percent}": _split(percent) for percent in SPLITS},
    "semi-100": _whole,
    "semi-dynamic": _dynamic,
}


def named(names: str) -> list[str]:
    """Of names by commas, each once; ConfigurationError names one that is unknown."""
    found = list(dict.fromkeys(name for name in names.split(",") if name))
    for name in found:
        if name not in KINDS:
            raise ConfigurationError(
                f"no system {name!r}; there are {', '.join(KINDS)}"
            )
    return found


def peers(given: Iterable[str]) -> list[System]:
    """Of `name=http://...`; ConfigurationError if one is not like that."""
    found = []
    for each in given:
        name, _, url = each.partition("=")
        if not name or name in KINDS or not url.startswith(("http://", "https://")):
            raise ConfigurationError(f"a peer is NAME=http://..., not {each!r}")
        found.append(System(name, url=url.rstrip("/")))
    return found
