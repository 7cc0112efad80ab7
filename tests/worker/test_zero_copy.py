"""A worker that was told to compute on shared memory only, or not at all."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, closing
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kv.cuda import DeviceMapping
from kv.segments import HostSegment, Mapping
from mesh.errors import ConfigurationError
from protocol.memory import SegmentHandle
from protocol.messages import InForce
from worker.settings import WorkerSettings
from worker.zero_copy import require, shared_memfds

STRICT = WorkerSettings(require_zero_copy=True)
ON_CPU = InForce(device="cpu", dtype="float32")
WHOLE = InForce(device="cuda", dtype="bfloat16", without_split="there is no daemon")


@pytest.fixture
def attachment() -> Iterator[Any]:
    """Weights and blocks of a store on the host, mapped."""
    with ExitStack() as stack:
        mappings = []
        for name in ("weights", "blocks"):
            segment = stack.enter_context(closing(HostSegment(name, 5000)))
            mapping = Mapping(os.dup(segment.fd), writable=name == "blocks")
            mappings.append(stack.enter_context(closing(mapping)))
        yield SimpleNamespace(weights=mappings[0], blocks=mappings[1])


def place(memory: Any) -> range:
    start = np.frombuffer(memory, np.uint8).ctypes.data
    return range(start, start + len(memory))


def test_what_lies_in_the_store_s_memory_is_no_copy(attachment: Any) -> None:
    """
    A worker over the mapped segments starts.
    """
    places = {
        "w": place(attachment.weights.view[64:128]),
        "blocks": place(attachment.blocks.view),
    }

    require(STRICT, attachment, places, ON_CPU)


def test_a_copy_is_named(attachment: Any) -> None:
    """
    A weight in this process's own memory ends it, with the weight's name.
    """
    copied = bytearray(attachment.weights.view)
    places = {"model.embed": place(copied), "lm_head": place(copied)}

    with pytest.raises(ConfigurationError, match=r"model\.embed and 1 more"):
        require(STRICT, attachment, places, ON_CPU)


def test_a_gpu_s_memory_is_where_it_was_mapped() -> None:
    """
    Addresses of a GPU are compared with what the driver mapped.
    """
    handle = SegmentHandle(sharing="vmm", size_bytes=1000)
    mapped: Any = SimpleNamespace(
        weights=DeviceMapping(handle, 1 << 40), blocks=DeviceMapping(handle, 2 << 40)
    )
    inside, outside = range(1 << 40, (1 << 40) + 1000), range(3 << 40, (3 << 40) + 8)

    require(STRICT, mapped, {"w": inside}, ON_CPU)
    with pytest.raises(ConfigurationError, match="w of this worker"):
        require(STRICT, mapped, {"w": outside}, ON_CPU)


def test_a_split_that_is_not_in_force_is_named(attachment: Any) -> None:
    """
    Who asks for a part of the GPU gets it or an end, with the reason.
    """
    settings = STRICT.model_copy(update={"shares": 40})

    with pytest.raises(ConfigurationError, match="not split: there is no daemon"):
        require(settings, attachment, {}, WHOLE)
    require(STRICT, attachment, {}, WHOLE)  # nobody asked
    require(settings, attachment, {}, WHOLE.changed(mps_percent="60"))


def test_a_private_mapping_is_none_that_others_see() -> None:
    """
    Of a process's mappings those count that are shared and of memory without a file.
    """
    maps = """\
7f0000000000-7f0000002000 r--s 00000000 00:01 42     /memfd:weights (deleted)
7f0000002000-7f0000004000 rw-p 00000000 00:01 42     /memfd:weights (deleted)
7f0000004000-7f0000006000 r--s 00000000 08:01 43     /usr/lib/locale
7f0000006000-7f0000008000 rw-p 00000000 00:00 0
"""

    assert list(shared_memfds(maps)) == [range(0x7F0000000000, 0x7F0000002000)]
