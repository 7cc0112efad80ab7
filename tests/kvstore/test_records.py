"""What a sequence record keeps for whoever computes the sequence next."""

from jobs import GEOMETRY, prefill_job, step

from kv.operations import EVERYTHING
from kvstore.records import SequenceRecord
from protocol.messages import PrefillJob


def decoding(job: PrefillJob) -> SequenceRecord:
    """A record whose prompt is computed and whose first token came with -0.5."""
    record = SequenceRecord.admit(job, GEOMETRY, age=1)
    first = step(record.as_answer(EVERYTHING), len(job.token_ids), 50)
    record.record(first._replace(logprobs=(-0.5,)))
    return record


def test_log_probabilities_outlive_their_owner() -> None:
    """
    The next owner is told how likely each token so far was.
    """
    record = decoding(prefill_job(num_tokens=6))

    record.record(step(record.as_answer(EVERYTHING), 7, 51)._replace(logprobs=(-1.5,)))

    assert record.as_answer(EVERYTHING).token_ids[6:] == (50, 51)
    assert record.as_answer(EVERYTHING).logprobs == (-0.5, -1.5)


def test_log_probabilities_outlive_the_store() -> None:
    """
    A job that starts again with its output brings along how likely that was.
    """
    record = decoding(prefill_job(num_tokens=6))
    record.restart()

    again = SequenceRecord.admit(record.next_job(), GEOMETRY, age=2)

    assert again.as_answer(EVERYTHING).token_ids[6:] == (50,)
    assert again.as_answer(EVERYTHING).logprobs == (-0.5,)
