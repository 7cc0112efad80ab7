"""A GPU's memory made of memfd, behind the names of NVIDIA's driver bindings.

First on a process's path it takes their place, so real processes share "GPU memory"
where there is no GPU. Variables: FAKE_GPU_BYTES is what one
allocation may have, FAKE_GPU_DESCRIPTORS=0 a GPU that exports none.
"""

import mmap
import os
from enum import IntEnum
from types import SimpleNamespace

GRANULARITY = 1 << 21


class CUresult(IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_INVALID_VALUE = 1


class CUmemAllocationType(IntEnum):
    CU_MEM_ALLOCATION_TYPE_PINNED = 1


class CUmemLocationType(IntEnum):
    CU_MEM_LOCATION_TYPE_DEVICE = 1


class CUmemAllocationHandleType(IntEnum):
    CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR = 1


class CUmemAllocationGranularity_flags(IntEnum):  # noqa: N801  NVIDIA's name
    CU_MEM_ALLOC_GRANULARITY_RECOMMENDED = 1


class CUmemAccess_flags(IntEnum):  # noqa: N801
    CU_MEM_ACCESS_FLAGS_PROT_READ = 1
    CU_MEM_ACCESS_FLAGS_PROT_READWRITE = 3


class CUipcMem_flags(IntEnum):  # noqa: N801
    CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS = 1


class CUdevice_attribute(IntEnum):  # noqa: N801
    CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED = 103


CUmemAllocationProp = CUmemLocation = CUmemAccessDesc = CUipcMemHandle = SimpleNamespace

# By address, which nobody follows here: tests look at the memory itself.
mapped: dict[int, mmap.mmap] = {}
_reserved: dict[int, tuple[int, int]] = {}  # size, descriptor


def cuInit(flags):  # noqa: N802
    return (CUresult.CUDA_SUCCESS,)


def cuDeviceGet(ordinal):  # noqa: N802
    return CUresult.CUDA_SUCCESS, ordinal


def cuDeviceGetAttribute(attribute, device):  # noqa: N802
    return CUresult.CUDA_SUCCESS, int(os.environ.get("FAKE_GPU_DESCRIPTORS", "1"))


def cuDevicePrimaryCtxRetain(device):  # noqa: N802
    return CUresult.CUDA_SUCCESS, "context"


def cuCtxSetCurrent(context):  # noqa: N802
    return (CUresult.CUDA_SUCCESS,)


def cuMemGetAllocationGranularity(properties, option):  # noqa: N802
    return CUresult.CUDA_SUCCESS, GRANULARITY


def cuMemCreate(size, properties, flags):  # noqa: N802
    if size % GRANULARITY:
        return CUresult.CUDA_ERROR_INVALID_VALUE, None
    if size > int(os.environ.get("FAKE_GPU_BYTES", 1 << 34)):
        return CUresult.CUDA_ERROR_OUT_OF_MEMORY, None
    fd = os.memfd_create("gpu")
    os.ftruncate(fd, size)
    return CUresult.CUDA_SUCCESS, fd


def cuMemExportToShareableHandle(allocation, kind, flags):  # noqa: N802
    return CUresult.CUDA_SUCCESS, os.dup(allocation)


def cuMemImportFromShareableHandle(fd, kind):  # noqa: N802
    return CUresult.CUDA_SUCCESS, os.dup(fd)


def cuMemRelease(allocation):  # noqa: N802
    os.close(allocation)
    return (CUresult.CUDA_SUCCESS,)


def cuMemAddressReserve(size, alignment, address, flags):  # noqa: N802
    start = (len(_reserved) + 1) << 40
    _reserved[start] = size, -1
    return CUresult.CUDA_SUCCESS, start


def cuMemMap(address, size, offset, allocation, flags):  # noqa: N802
    _reserved[address] = size, os.dup(allocation)
    return (CUresult.CUDA_SUCCESS,)


def cuMemSetAccess(address, size, descriptions, count):  # noqa: N802
    writes = (
        descriptions[0].flags == CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
    )
    access = mmap.ACCESS_WRITE if writes else mmap.ACCESS_READ
    mapped[address] = mmap.mmap(_reserved[address][1], size, access=access)
    return (CUresult.CUDA_SUCCESS,)


def cuMemUnmap(address, size):  # noqa: N802
    os.close(_reserved[address][1])
    mapped.pop(address).close()
    return (CUresult.CUDA_SUCCESS,)


def cuMemAddressFree(address, size):  # noqa: N802
    return (CUresult.CUDA_SUCCESS,)


def cuMemAlloc(size):  # noqa: N802
    fd = os.memfd_create("gpu")
    os.ftruncate(fd, size)
    return CUresult.CUDA_SUCCESS, fd


def cuMemFree(address):  # noqa: N802
    os.close(address)
    return (CUresult.CUDA_SUCCESS,)


def cuIpcGetMemHandle(address):  # noqa: N802
    name = f"/proc/{os.getpid()}/fd/{address}"
    return CUresult.CUDA_SUCCESS, SimpleNamespace(reserved=name.encode().ljust(64))


def cuIpcOpenMemHandle(handle, flags):  # noqa: N802
    fd = os.open(handle.reserved.decode().strip(), os.O_RDWR)
    address = (len(_reserved) + 1) << 40
    _reserved[address] = 0, fd
    mapped[address] = mmap.mmap(fd, 0)
    return CUresult.CUDA_SUCCESS, address


def cuIpcCloseMemHandle(address):  # noqa: N802
    return cuMemUnmap(address, 0)
