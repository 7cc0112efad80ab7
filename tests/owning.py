"""What a worker does with a sequence at the store, each in one call."""

from jobs import step

from kv.operations import Record
from kvstore.records import SequenceRecord
from kvstore.store import Store
from protocol.messages import PrefillJob


def admitted(store: Store, job: PrefillJob, worker: str = "a") -> Record:
    record = store.admit(job, worker)
    assert isinstance(record, Record)
    return record


def prefilled(store: Store, job: PrefillJob, worker: str = "a") -> Record:
    """Admitted, its prompt computed and its first token sampled."""
    return generated(store, job, 1, worker)


def generated(
    store: Store, job: PrefillJob, num_outputs: int, worker: str = "a"
) -> Record:
    """Admitted, and so many tokens sampled: 50, 51, 52 ..."""
    record = admitted(store, job, worker)
    for index in range(num_outputs):
        num_computed = len(job.token_ids) + index
        store.advance([step(record, num_computed, 50 + index)], worker)
    return record


def announced(store: Store) -> list[SequenceRecord]:
    """What nobody owns and was not announced yet."""
    records = [store.parked(request_id) for request_id in store.announcements]
    store.announcements.clear()
    return [record for record in records if record is not None]


def adopted(store: Store, worker: str = "a") -> list[Record]:
    """All that is announced, now this worker's."""
    answers = [
        store.adopt(record.request_id, record.generation, worker)
        for record in announced(store)
    ]
    return [answer for answer in answers if isinstance(answer, Record)]
