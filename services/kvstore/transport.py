"""How a sequence whose prompt is computed comes to who decodes it.

* `local`: prefill and decode share the blocks of one pool; there is nothing to move
* `tcp`: another pool decodes; its store is told where to fetch the K/V
"""

from dataclasses import dataclass
from typing import Protocol

from kvstore.records import SequenceRecord
from protocol import keys
from protocol.messages import DecodeJob, PrefillJob, Source, TransferJob

Job = PrefillJob | DecodeJob | TransferJob


class KVTransport(Protocol):
    """Says who goes on with a parked sequence, and where they find its K/V."""

    def announcement(self, record: SequenceRecord) -> tuple[str, Job]:
        """A stream, and the job to put there."""
        ...


@dataclass(frozen=True, slots=True)
class LocalTransport:
    """All workers of the pool find the K/V where it is."""

    pool: str

    def announcement(self, record: SequenceRecord) -> tuple[str, Job]:
        if record.transfer:  # its K/V is not here yet
            return keys.transfers(self.pool), again(record, record.transfer)
        match job := record.next_job():
            case PrefillJob():
                return keys.prefill(self.pool), job
            case DecodeJob():
                return keys.decode(self.pool), job


@dataclass(frozen=True, slots=True)
class TcpTransport:
    """What is to be decoded goes to another pool, which fetches it from `address`."""

    local: LocalTransport
    handoff_pool: str
    address: str
    store: str  # worker id of this one

    def announcement(self, record: SequenceRecord) -> tuple[str, Job]:
        stream, job = self.local.announcement(record)
        if not isinstance(job, DecodeJob):
            return stream, job
        source = Source(
            address=self.address, store=self.store, generation=record.generation
        )
        return keys.transfers(self.handoff_pool), TransferJob(
            sequence=record.as_prompt(),
            source=source,
            num_cached_tokens=record.num_cached_tokens or 0,
        )


def again(record: SequenceRecord, job: TransferJob) -> TransferJob:
    """The latest that was heard of it, for whoever comes first."""
    sequence = job.sequence.changed(generation=record.generation)
    return job.changed(sequence=sequence)
