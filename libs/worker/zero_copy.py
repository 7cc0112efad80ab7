"""For TANDEM_REQUIRE_ZERO_COPY: a worker that would compute on copies, or without the part
of the GPU that it was told to keep to, ends with the reason.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from kv.client import Attachment
from kv.cuda import DeviceMapping
from mesh.errors import ConfigurationError
from mesh.settings import PREFIX
from protocol.messages import InForce
from worker.settings import WorkerSettings

MAPS = Path("/proc/self/maps")


def require(
    settings: WorkerSettings,
    attachment: Attachment,
    places: Mapping[str, range],
    in_force: InForce,
) -> None:
    """`places` are the addresses of weights and blocks as the engine uses them.

    Raises ConfigurationError.
    """
    name = f"{PREFIX}REQUIRE_ZERO_COPY"
    if copied := outside(places, list(shared(attachment))):
        more = f" and {len(copied) - 1} more" if copied[1:] else ""
        raise ConfigurationError(
            f"{name}: {copied[0]}{more} of this worker do not lie in the store's memory"
        )
    reason = "" if in_force.mps_percent else in_force.without_split
    if settings.asks_for_split and reason:
        raise ConfigurationError(f"{name}: the GPU is not split: {reason}")


def outside(places: Mapping[str, range], shared: Iterable[range]) -> list[str]:
    """What does not lie in any of these ranges of addresses."""
    return [
        name
        for name, place in places.items()
        if place and not any(place[0] in each and place[-1] in each for each in shared)
    ]


def shared(attachment: Attachment) -> Iterator[range]:
    """The addresses at which this process sees what the store lent."""
    for mapping in (attachment.weights, attachment.blocks):
        if isinstance(mapping, DeviceMapping):
            yield range(mapping.address, mapping.address + mapping.handle.size_bytes)
            continue
        yield from shared_memfds(MAPS.read_text())


def shared_memfds(maps: str) -> Iterator[range]:
    """Mappings of memfds in such a file that others see, too: not private ones."""
    for line in maps.splitlines():
        addresses, permissions, *_ = line.split()
        if permissions.endswith("s") and " /memfd:" in line:
            start, end = (int(each, 16) for each in addresses.split("-"))
            yield range(start, end)
