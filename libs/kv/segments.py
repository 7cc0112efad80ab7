"""Named pieces of shared memory; on the host memfd, passed by descriptor, mapped by all.

A GPU's are in `kv.cuda`. A memfd has no name in any file system: when the last process that holds or maps it is
gone, so is the memory, however the processes died.
"""

import fcntl
import mmap
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from protocol.memory import SegmentHandle

# Linux 5.1; Python names it from 3.13 on. New mappings can only read; the loader's own
# mapping may still exist when the seal is set.
F_SEAL_FUTURE_WRITE = 0x0010
# Linux 5.14; Python does not name it.
MADV_POPULATE_WRITE = 23
PIECE_BYTES = 1 << 24  # populated at once, while no other thread of Python runs


class Segment(Protocol):
    """A piece of memory that this process made and hands out."""

    @property
    def handle(self) -> SegmentHandle: ...

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What has to travel beside the handle: one descriptor or none."""
        ...

    def seal_read_only(self) -> None: ...

    def close(self) -> None: ...


SegmentMaker = Callable[[str, int], Segment]  # of a name and a size in bytes


class Mapped(Protocol):
    """A segment in this process's address space, until it is closed."""

    handle: SegmentHandle

    @property
    def view(self) -> Any:
        """What an engine wraps: a memoryview, or a GPU's array interface."""
        ...

    def close(self) -> None: ...


class HostSegment:
    """A segment of the host's memory."""

    def __init__(self, name: str, size_bytes: int) -> None:
        """Take the address space; the pages come when somebody first writes."""
        self.name = name
        self.size_bytes = size_bytes
        self.fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        # An empty mapping is an error, an empty model is not.
        os.ftruncate(self.fd, max(size_bytes, 1))
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)

    @property
    def handle(self) -> SegmentHandle:
        return SegmentHandle(sharing="memfd", size_bytes=self.size_bytes)

    @property
    def descriptors(self) -> tuple[int, ...]:
        return (self.fd,)

    def seal_read_only(self) -> None:
        """From now on nobody can map it for writing."""
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, F_SEAL_FUTURE_WRITE)

    def close(self) -> None:
        os.close(self.fd)


class Mapping:
    """A segment of the host's memory, mapped."""

    def __init__(self, fd: int, *, writable: bool) -> None:
        """Map the whole segment; the descriptor is the mapping's from now on."""
        access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
        self.fd = fd
        try:
            self._memory = mmap.mmap(fd, 0, access=access)
        except BaseException:
            os.close(fd)
            raise
        self._view = memoryview(self._memory)
        self.handle = SegmentHandle(sharing="memfd", size_bytes=len(self._view))

    @property
    def view(self) -> memoryview:
        return self._view

    def populate(self) -> None:
        """Have every page now, and none in the middle of a step.

        Where the kernel cannot, or has no memory left, they come when they are written.
        """
        size = len(self._view)
        with suppress(OSError):
            for start in range(0, size, PIECE_BYTES):
                length = min(PIECE_BYTES, size - start)
                self._memory.madvise(MADV_POPULATE_WRITE, start, length)

    def close(self) -> None:
        """Give the mapping up; a view still held by a tensor keeps it until then."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        # A tensor may still point here: then the mapping ends with the last of them.
        with suppress(BufferError):
            self._view.release()
            self._memory.close()
