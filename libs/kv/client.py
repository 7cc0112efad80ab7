"""A worker's end of the store connection. Synchronous: one call, one answer.

The connection is the worker's life as far as the store knows: when it closes, or nothing
is heard on it for the time of a lease, the store parks everything that the worker holds
and announces it to the others. Calls may come from several threads.
"""

import select
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from kv.cuda import map_on_device
from kv.errors import LeaseLost, Refused, StoreLost
from kv.frames import framed, receive_descriptors, receive_frame
from kv.journal import Journal
from kv.operations import (
    Admit,
    Adopt,
    Advance,
    Advanced,
    Answer,
    Attach,
    Attached,
    BeginLoad,
    CommitLoad,
    Done,
    Expired,
    Forget,
    Gone,
    Held,
    Loading,
    LoadWanted,
    Operation,
    Park,
    Progress,
    Queued,
    Record,
    RefusedReply,
    Release,
    Renew,
    Room,
    Stats,
    decode_answer,
)
from kv.segments import Mapped, Mapping
from protocol.memory import SegmentHandle
from protocol.messages import Cancel, Phase, PoolStatus, PrefillJob, RequestId
from protocol.wire import encode

ANSWER_SECONDS = 10.0  # the store never computes: a longer silence is a dead store

A = TypeVar("A", bound=Answer)


class StoreClient:
    """The calls of DESIGN's store contract, each atomic at the store."""

    _journal: Journal | None = None  # from `attach` on

    def __init__(self, path: Path, answer_seconds: float = ANSWER_SECONDS) -> None:
        """Connect; StoreLost if nobody listens at `path`."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(answer_seconds)
        self._calling = threading.Lock()
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise StoreLost(f"no store at {path}: {error.strerror}") from error

    def close(self) -> None:
        self._socket.close()
        if self._journal:
            self._journal.close()

    def attach(
        self,
        worker_id: str,
        fingerprint: str,
        phases: tuple[Phase, ...] = ("prefill", "decode"),
    ) -> "Attachment | LoadWanted | Loading":
        """Join the pool; Refused if its model is another one."""
        answer = self._call(
            Attach(worker_id=worker_id, fingerprint=fingerprint, phases=phases)
        )
        match answer:
            case LoadWanted() | Loading():
                return answer
            case Attached():
                descriptors = self._receive(answer.weights, answer.blocks, num_more=1)
                weights = _mapped(answer.weights, descriptors, writable=False)
                blocks = _mapped(answer.blocks, descriptors, writable=True)
                self._journal = Journal(next(descriptors))
                return Attachment(answer, weights, blocks)
        raise StoreLost(f"an answer out of place: {answer.type}")

    def begin_load(self, load: BeginLoad) -> Mapped:
        """Room for the weights, writable; to be closed before `commit_load`."""
        room = self._expect(load, Room)
        return _mapped(room.weights, self._receive(room.weights), writable=True)

    def commit_load(self, free_bytes: int = 0) -> None:
        self._expect(CommitLoad(free_bytes=free_bytes), Done)

    def admit(self, job: PrefillJob) -> Record | Queued | Gone:
        return self._taken(Admit(job=job))

    def adopt(self, request_id: RequestId, generation: int) -> Record | Queued | Gone:
        return self._taken(Adopt(request_id=request_id, generation=generation))

    def advance(self, progress: Iterable[Progress], pile_tokens: int = 0) -> Advanced:
        # Unchecked: it comes with every step, and the store checks it.
        step = Advance.model_construct(
            progress=tuple(progress), pile_tokens=pile_tokens
        )
        return self._expect(step, Advanced)

    def note(self, progress: Iterable[Progress]) -> Advanced | None:
        """`advance` for steps after which nobody needs a block: None where the store has
        nothing to say either, and hears of them later."""
        steps = tuple(progress)
        try:
            if self._journal is None or not self._journal.write(steps):
                return self.advance(steps)
            return self.advance(()) if self._journal.is_called() else None
        except OSError as error:
            raise StoreLost(f"the store reads no more: {error}") from error

    def park(self, sequences: Iterable[Held]) -> None:
        self._expect(Park(sequences=tuple(sequences)), Done)

    def release(self, sequences: Iterable[Held]) -> None:
        self._expect(Release(sequences=tuple(sequences)), Done)

    def forget(self, sequences: Iterable[Held]) -> None:
        self._expect(Forget(sequences=tuple(sequences)), Done)

    def renew(self) -> None:
        """Keep the lease on all that is held; LeaseLost if it is lost."""
        self._expect(Renew(), Done)

    def cancel(self, request_id: RequestId) -> None:
        self._expect(Cancel(request_id=request_id), Done)

    def stats(self) -> PoolStatus:
        return self._expect(Stats(), PoolStatus)

    def check(self) -> None:
        """StoreLost if the store hung up meanwhile; asks it nothing."""
        poll = select.poll()
        poll.register(self._socket, select.POLLRDHUP)
        if poll.poll(0):
            raise StoreLost("the store closed the connection")

    def _receive(self, *handles: SegmentHandle, num_more: int = 0) -> Iterator[int]:
        """The descriptors that follow: of those handles that have one, and more."""
        count = num_more + sum(handle.sharing != "ipc" for handle in handles)
        return iter(receive_descriptors(self._socket, count) if count else [])

    def _taken(self, operation: Operation) -> Record | Queued | Gone:
        answer = self._call(operation)
        if isinstance(answer, Record | Queued | Gone):
            return answer
        raise StoreLost(f"an answer out of place: {answer.type}")

    def _expect(self, operation: Operation, kind: type[A]) -> A:
        answer = self._call(operation)
        if isinstance(answer, kind):
            return answer
        raise StoreLost(f"an answer out of place: {answer.type}")

    def _call(self, operation: Operation) -> Answer:
        match answer := self._exchange(operation):
            case RefusedReply(reason=reason):
                raise Refused(reason)
            case Expired():
                raise LeaseLost("the store took back what this process held")
        return answer

    def _exchange(self, operation: Operation) -> Answer:
        try:
            with self._calling:
                self._socket.sendall(framed(encode(operation)))
                return decode_answer(receive_frame(self._socket))
        except OSError as error:
            # An answer that still comes would be taken for that of a later call.
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            raise StoreLost(f"the store does not answer: {error}") from error


def _mapped(
    handle: SegmentHandle, descriptors: Iterator[int], *, writable: bool
) -> Mapped:
    match handle.sharing:
        case "memfd":
            return Mapping(next(descriptors), writable=writable)
        case "vmm":
            return map_on_device(handle, next(descriptors), writable=writable)
        case "ipc":
            return map_on_device(handle, None, writable=writable)


class Attachment:
    """A pool's memory as one worker sees it, until it is closed."""

    def __init__(self, attached: Attached, weights: Mapped, blocks: Mapped) -> None:
        self.facts = attached.facts
        self.geometry = attached.geometry
        self.tensors = attached.tensors
        self.num_blocks = attached.num_blocks
        self.max_model_len = attached.max_model_len
        self.weights = weights
        self.blocks = blocks

    def close(self) -> None:
        self.weights.close()
        self.blocks.close()
