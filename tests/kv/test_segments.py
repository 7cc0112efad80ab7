"""Shared memory between real processes."""

import mmap
import os
import subprocess
import sys
from array import array
from contextlib import closing
from resource import RUSAGE_SELF, getrusage

import pytest

from kv.segments import HostSegment, Mapping

WRITER = """
import sys
from contextlib import closing
from kv.segments import Mapping
with closing(Mapping(int(sys.argv[1]), writable=True)) as mapping:
    mapping.view[:5] = b"hello"
"""


def test_another_process_s_writes_are_seen() -> None:
    """
    Whoever maps a segment sees what the others write, without a copy in between.
    """
    segment = HostSegment("test", 4096)

    subprocess.run(
        [sys.executable, "-c", WRITER, str(segment.fd)],
        pass_fds=[segment.fd],
        check=True,
    )

    with closing(Mapping(os.dup(segment.fd), writable=False)) as mapping:
        assert bytes(mapping.view[:5]) == b"hello"
    segment.close()


def test_memory_outlives_its_descriptor() -> None:
    """
    A mapping keeps the memory alive after the segment's maker is gone.
    """
    segment = HostSegment("test", 4096)
    mapping = Mapping(os.dup(segment.fd), writable=True)

    segment.close()
    mapping.view[0] = 7

    assert mapping.view[0] == 7
    mapping.close()


def test_what_is_populated_does_not_fault() -> None:
    """
    Writing to each page for the first time costs nothing after that: a page that comes
    in the middle of a step takes microseconds, and a long prompt has thousands.
    """
    num_pages = 512
    segment = HostSegment("test", num_pages * mmap.PAGESIZE)
    with closing(segment), closing(Mapping(os.dup(segment.fd), writable=True)) as one:
        one.populate()
        before = getrusage(RUSAGE_SELF).ru_minflt

        for page in range(num_pages):
            one.view[page * mmap.PAGESIZE] = 1

        assert getrusage(RUSAGE_SELF).ru_minflt - before < num_pages / 8


def test_a_segment_keeps_its_size() -> None:
    """
    Nobody can shrink memory that others have mapped.
    """
    segment = HostSegment("test", 4096)

    with pytest.raises(PermissionError):
        os.ftruncate(segment.fd, 10)

    segment.close()


def test_sealed_memory_is_read_only() -> None:
    """
    After the seal new mappings can read, and only read.
    """
    segment = HostSegment("test", 4096)
    segment.seal_read_only()

    with pytest.raises(PermissionError):
        Mapping(os.dup(segment.fd), writable=True)

    Mapping(os.dup(segment.fd), writable=False).close()
    segment.close()


def test_closing_with_views_alive_is_no_error() -> None:
    """
    A tensor that still points into a mapping keeps it, and the close goes on.
    """
    segment = HostSegment("test", 4096)
    mapping = Mapping(os.dup(segment.fd), writable=True)
    part = mapping.view[8:16].cast("q")

    mapping.close()
    part[0] = 5

    assert array("q", part) == array("q", [5])
    segment.close()


def test_an_empty_segment_can_be_mapped() -> None:
    """
    A model without weights, as the fake one is, needs no special case.
    """
    segment = HostSegment("test", 0)

    with closing(Mapping(os.dup(segment.fd), writable=True)) as mapping:
        assert len(mapping.view) == 1

    segment.close()
