"""A GPU's memory lent and mapped, over a driver made of memfd."""

import os
from collections.abc import Iterator
from contextlib import closing
from types import ModuleType

import pytest
from fake_gpu import fake_bindings

from device.driver import Driver, NoDevice
from kv.cuda import IpcMapping, IpcSegment, VmmMapping, VmmSegment, segment_maker
from kv.errors import NoRoom


@pytest.fixture(scope="module")
def fake() -> ModuleType:
    return fake_bindings()


@pytest.fixture
def gpu(fake: ModuleType) -> Driver:
    return Driver(fake)


@pytest.fixture
def segment(gpu: Driver) -> Iterator[VmmSegment]:
    with closing(VmmSegment(gpu, 5000)) as segment:
        yield segment


def test_descriptors_share_one_allocation(
    gpu: Driver, fake: ModuleType, segment: VmmSegment
) -> None:
    """
    Whoever maps an exported allocation sees what the others write.
    """
    (fd,) = segment.descriptors
    writer = VmmMapping(gpu, segment.handle, fd, writable=True)
    reader = VmmMapping(gpu, segment.handle, fd, writable=False)

    fake.mapped[writer.address][7] = 42

    assert fake.mapped[reader.address][7] == 42
    reader.close()
    writer.close()


def test_weights_are_mapped_read_only(
    gpu: Driver, fake: ModuleType, segment: VmmSegment
) -> None:
    """
    A worker cannot change what every worker reads.
    """
    mapping = VmmMapping(gpu, segment.handle, segment.descriptors[0], writable=False)

    with pytest.raises(TypeError):
        fake.mapped[mapping.address][0] = 1

    mapping.close()


def test_an_allocation_is_as_large_as_the_driver_wants(segment: VmmSegment) -> None:
    """
    Sizes are rounded up to the driver's granularity, and the handle says so.
    """
    assert segment.handle.sharing == "vmm"
    assert segment.handle.size_bytes == 1 << 21


def test_memory_outlives_its_maker(gpu: Driver, fake: ModuleType) -> None:
    """
    When the store is gone, who still maps its memory can go on with it.
    """
    segment = VmmSegment(gpu, 5000)
    mapping = VmmMapping(gpu, segment.handle, segment.descriptors[0], writable=True)

    segment.close()

    fake.mapped[mapping.address][0] = 3
    assert fake.mapped[mapping.address][0] == 3
    mapping.close()


def test_handles_share_memory_without_descriptors(
    gpu: Driver, fake: ModuleType
) -> None:
    """
    CUDA's older handles say all by themselves where the memory is.
    """
    segment = IpcSegment(gpu, 5000)
    one, other = (IpcMapping(gpu, segment.handle) for _ in range(2))

    fake.mapped[one.address][7] = 42

    assert segment.descriptors == ()
    assert fake.mapped[other.address][7] == 42
    for each in (one, other, segment):
        each.close()


def test_torch_finds_the_bytes(gpu: Driver, segment: VmmSegment) -> None:
    """
    A mapping describes itself as an array of bytes, which torch wraps without a copy.
    """
    mapping = VmmMapping(gpu, segment.handle, segment.descriptors[0], writable=False)

    described = mapping.__cuda_array_interface__

    assert described["shape"] == (1 << 21,)
    assert described["data"] == (mapping.address, False)
    mapping.close()


def test_a_mapping_leaves_no_descriptor_behind(
    gpu: Driver, segment: VmmSegment
) -> None:
    """
    A worker that attaches over and over does not run out of descriptors.
    """
    before = len(os.listdir("/proc/self/fd"))

    VmmMapping(gpu, segment.handle, segment.descriptors[0], writable=True).close()

    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(("supported", "sharing"), [("1", "vmm"), ("0", "ipc")])
def test_the_better_way_is_taken_where_it_exists(
    supported: str, sharing: str, gpu: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    "auto" means descriptors, and the older handles on a GPU that exports none.
    """
    monkeypatch.setenv("FAKE_GPU_DESCRIPTORS", supported)

    segment = segment_maker("auto", lambda: gpu)("blocks", 5000)

    assert segment.handle.sharing == sharing
    segment.close()


def test_a_full_gpu_is_named(gpu: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Too many blocks are refused with their size and the driver's reason.
    """
    monkeypatch.setenv("FAKE_GPU_BYTES", "1000000")

    with pytest.raises(NoRoom, match=r"blocks of 0\.2 GB.*OUT_OF_MEMORY"):
        segment_maker("vmm", lambda: gpu)("blocks", 200_000_000)


def test_a_machine_without_a_gpu_is_refused_in_words() -> None:
    """
    Who asks for GPU memory where there is none is told so.
    """

    def absent() -> Driver:
        raise NoDevice("no CUDA driver answers")

    with pytest.raises(NoRoom, match="no CUDA driver"):
        segment_maker("auto", absent)
