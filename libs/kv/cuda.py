"""Segments in a GPU's memory, made and mapped through the driver. Needs no torch.

Two ways to share, told apart by the handle:

- `vmm`: an allocation of its own, exported as a POSIX descriptor that travels over the
  store's socket. No shared namespaces are needed, each process decides what it maps
  writable, and the maker needs no CUDA context, so no kernel's fault can harm it.
- `ipc`: CUDA's older handles. Works where descriptors are not supported; processes must
  share their IPC and PID namespaces, and everything is writable.

Both are lent, not copied: the memory lives until the last process lets go of it.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Literal

from device.driver import DEVICE, DeviceError, Driver, driver
from kv.errors import NoRoom
from kv.segments import Segment, SegmentMaker
from protocol.memory import SegmentHandle

Wanted = Literal["auto", "ipc", "vmm"]


def segment_maker(wanted: Wanted, find: Callable[[], Driver] = driver) -> SegmentMaker:
    """Makes segments of that kind; of the better one that this GPU has, for "auto".

    Raises NoRoom when there is no GPU.
    """
    try:
        gpu = find()
        takes_descriptors = wanted == "vmm" or (
            wanted == "auto" and _has_descriptors(gpu)
        )
    except DeviceError as error:
        raise NoRoom(str(error)) from None
    make: Callable[[Driver, int], Segment]
    make = VmmSegment if takes_descriptors else IpcSegment

    def maker(name: str, size_bytes: int) -> Segment:
        try:
            return make(gpu, size_bytes)
        except DeviceError as error:
            raise NoRoom(f"{name} of {size_bytes / 1e9:.1f} GB: {error}") from None

    return maker


def map_on_device(
    handle: SegmentHandle, descriptor: int | None, *, writable: bool
) -> "DeviceMapping":
    """Map what another process made; takes the descriptor over. Raises NoRoom."""
    try:
        gpu = driver()
        _enter_context(gpu)
        if descriptor is None:
            return IpcMapping(gpu, handle)
        return VmmMapping(gpu, handle, descriptor, writable=writable)
    except DeviceError as error:
        raise NoRoom(str(error)) from None
    finally:
        if descriptor is not None:
            os.close(descriptor)


class VmmSegment:
    """Memory by `cuMemCreate`, never mapped here."""

    def __init__(self, gpu: Driver, size_bytes: int) -> None:
        self._gpu = gpu
        properties = _properties(gpu)
        granularity = gpu.call(
            "cuMemGetAllocationGranularity",
            properties,
            gpu.bindings.CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_RECOMMENDED,
        )
        rounded = -(-max(size_bytes, 1) // granularity) * granularity
        self.handle = SegmentHandle(sharing="vmm", size_bytes=rounded)
        self._memory = gpu.call("cuMemCreate", rounded, properties, 0)
        fd = gpu.call("cuMemExportToShareableHandle", self._memory, _posix(gpu), 0)
        self.descriptors = (int(fd),)

    def seal_read_only(self) -> None:
        """Each process maps it read-only by itself; the driver then keeps it to that."""

    def close(self) -> None:
        os.close(self.descriptors[0])
        with suppress(DeviceError):
            self._gpu.call("cuMemRelease", self._memory)


class IpcSegment:
    """Memory by `cuMemAlloc`, named by a handle of 64 bytes."""

    descriptors: tuple[int, ...] = ()

    def __init__(self, gpu: Driver, size_bytes: int) -> None:
        self._gpu = gpu
        _enter_context(gpu)
        self._address = gpu.call("cuMemAlloc", max(size_bytes, 1))
        ipc = gpu.call("cuIpcGetMemHandle", self._address)
        self.handle = SegmentHandle(
            sharing="ipc", size_bytes=max(size_bytes, 1), ipc=bytes(ipc.reserved)
        )

    def seal_read_only(self) -> None:
        """These handles know no such thing."""

    def close(self) -> None:
        with suppress(DeviceError):
            self._gpu.call("cuMemFree", self._address)


class DeviceMapping:
    """A segment in this process's part of the GPU's address space, until closed.

    Whoever wraps it (torch does by `__cuda_array_interface__`) must let go before.
    """

    def __init__(self, handle: SegmentHandle, address: int) -> None:
        self.handle = handle
        self.address = address

    @property
    def view(self) -> "DeviceMapping":
        return self

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        # Never "read-only": torch refuses that. The mapping itself is.
        return {
            "shape": (self.handle.size_bytes,),
            "typestr": "|u1",
            "data": (self.address, False),
            "version": 3,
        }

    def close(self) -> None:
        raise NotImplementedError


class VmmMapping(DeviceMapping):
    """An imported allocation, mapped readable, or writable too."""

    def __init__(
        self, gpu: Driver, handle: SegmentHandle, descriptor: int, *, writable: bool
    ) -> None:
        self._gpu = gpu
        size = handle.size_bytes
        memory = gpu.call("cuMemImportFromShareableHandle", descriptor, _posix(gpu))
        try:
            address = gpu.call("cuMemAddressReserve", size, 0, 0, 0)
            gpu.call("cuMemMap", address, size, 0, memory, 0)
            gpu.call("cuMemSetAccess", address, size, [_access(gpu, writable)], 1)
        finally:
            gpu.call("cuMemRelease", memory)  # the mapping keeps it
        super().__init__(handle, int(address))

    def close(self) -> None:
        with suppress(DeviceError):  # a context that died took the mapping along
            self._gpu.call("cuMemUnmap", self.address, self.handle.size_bytes)
            self._gpu.call("cuMemAddressFree", self.address, self.handle.size_bytes)


class IpcMapping(DeviceMapping):
    """Opened once in this process; always writable."""

    def __init__(self, gpu: Driver, handle: SegmentHandle) -> None:
        self._gpu = gpu
        ipc = gpu.bindings.CUipcMemHandle()
        ipc.reserved = handle.ipc
        lazily = gpu.bindings.CUipcMem_flags.CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS
        super().__init__(handle, int(gpu.call("cuIpcOpenMemHandle", ipc, lazily.value)))

    def close(self) -> None:
        with suppress(DeviceError):
            self._gpu.call("cuIpcCloseMemHandle", self.address)


def _enter_context(gpu: Driver) -> None:
    """The primary context, which torch uses too; it lasts as long as the process."""
    device = gpu.call("cuDeviceGet", DEVICE)
    gpu.call("cuCtxSetCurrent", gpu.call("cuDevicePrimaryCtxRetain", device))


def _has_descriptors(gpu: Driver) -> bool:
    attribute = gpu.bindings.CUdevice_attribute
    supported = (
        attribute.CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED
    )
    device = gpu.call("cuDeviceGet", DEVICE)
    return bool(gpu.call("cuDeviceGetAttribute", supported, device))


def _posix(gpu: Driver) -> Any:
    kinds = gpu.bindings.CUmemAllocationHandleType
    return kinds.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR


def _properties(gpu: Driver) -> Any:
    properties = gpu.bindings.CUmemAllocationProp()
    properties.type = gpu.bindings.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
    properties.location = _location(gpu)
    properties.requestedHandleTypes = _posix(gpu)
    return properties


def _access(gpu: Driver, writable: bool) -> Any:
    flags = gpu.bindings.CUmemAccess_flags
    access = gpu.bindings.CUmemAccessDesc()
    access.location = _location(gpu)
    access.flags = (
        flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
        if writable
        else flags.CU_MEM_ACCESS_FLAGS_PROT_READ
    )
    return access


def _location(gpu: Driver) -> Any:
    location = gpu.bindings.CUmemLocation()
    location.type = gpu.bindings.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
    location.id = DEVICE
    return location
