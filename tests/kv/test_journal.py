"""Steps that are written down and read later, through a real pair of sockets."""

import os
from collections.abc import Iterator
from contextlib import closing

import msgpack
import pytest

from kv.journal import MAX_ENTRY_BYTES, Journal, JournalReader
from kv.operations import Progress
from protocol.messages import RequestId
from protocol.wire import MalformedMessage

A, B = RequestId("a"), RequestId("b")


@pytest.fixture
def reader() -> Iterator[JournalReader]:
    with closing(JournalReader()) as reader:
        yield reader


@pytest.fixture
def journal(reader: JournalReader) -> Iterator[Journal]:
    with closing(Journal(os.dup(reader.descriptor))) as journal:
        yield journal


def steps(number: int) -> tuple[Progress, ...]:
    first = Progress(A, 1, number, (number,), (-0.5,))
    return first, Progress(B, 2, number, ())


def test_the_dead_can_be_read(reader: JournalReader, journal: Journal) -> None:
    """
    All that was written is there in its order, once, when its writer is gone.
    """
    for number in range(3):
        assert journal.write(steps(number))
    journal.close()

    assert list(reader.read()) == [steps(0), steps(1), steps(2)]
    assert list(reader.read()) == []


def test_a_call_is_heard_once(reader: JournalReader, journal: Journal) -> None:
    """
    However often the store called since the last look, the worker asks once.
    """
    before = journal.is_called()
    for _ in range(1000):
        reader.call()

    assert not before
    assert journal.is_called()
    assert not journal.is_called()


def test_a_step_of_too_many_is_not_noted(
    reader: JournalReader, journal: Journal
) -> None:
    """
    An entry that the socket could not hold is no error of it: the worker asks instead.

    What is as long as may be is read whole.
    """
    one = Progress(RequestId("r" * 100), 1, 2**40, (2**20,))
    size = len(msgpack.packb(one))
    most = (MAX_ENTRY_BYTES - 3) // size  # beside how many there are

    assert not journal.write((one,) * (most + 1))
    assert journal.write((one,) * most)

    assert list(reader.read()) == [(one,) * most]


def test_a_full_journal_takes_no_more(reader: JournalReader, journal: Journal) -> None:
    """
    What does not fit is refused, and what was taken is not lost.
    """
    num_written = 0
    while journal.write(steps(num_written)):
        num_written += 1

    assert list(reader.read()) == [steps(number) for number in range(num_written)]
    assert num_written > 64
    assert journal.write(steps(0))


def test_nobody_writes_for_nobody(reader: JournalReader, journal: Journal) -> None:
    """
    When the store is gone the next step cannot be written, and there is a call.
    """
    reader.close()

    assert journal.is_called()
    with pytest.raises(OSError, match="Broken pipe"):
        journal.write(steps(0))


def test_other_words_are_malformed(reader: JournalReader) -> None:
    """
    What is no step is an error, and not taken for one.
    """
    os.write(reader.descriptor, b"\x93\x01\x02\x03")

    with pytest.raises(MalformedMessage):
        list(reader.read())
