"""Who computes what in a step."""

from engine.interface import Drawn
from kv.operations import Record
from protocol.messages import RequestId
from protocol.sampling import SamplingParams
from worker.batch import Batch
from worker.sequence import Sequence


def prompt(name: str, num_tokens: int, num_computed_tokens: int = 0) -> Sequence:
    record = Record(
        request_id=RequestId(name),
        generation=1,
        token_ids=tuple(range(num_tokens)),
        num_prompt_tokens=num_tokens,
        num_computed_tokens=num_computed_tokens,
        num_cached_tokens=0,
        block_size=4,
        block_table=(),
        sampling=SamplingParams(max_tokens=5),
        reply_to="g1",
    )
    return Sequence.from_record(record)


def decoding(name: str) -> Sequence:
    sequence = prompt(name, 3)
    sequence.apply(sequence.chunk(3), Drawn(50))
    return sequence


def scheduled(batch: Batch) -> list[tuple[str, int]]:
    steps = batch.schedule(batch.max_num_batched_tokens)
    return [(s.request_id, len(chunk.token_ids)) for s, chunk in steps]


def test_an_empty_batch_has_nothing_to_do() -> None:
    """
    Without sequences there is no step.
    """
    assert scheduled(Batch(max_num_batched_tokens=8)) == []


def test_prompts_share_a_step_up_to_the_budget() -> None:
    """
    Several prompts are packed into one step; the last may go in part.
    """
    batch = Batch(max_num_batched_tokens=8)
    for sequence in (prompt("a", 3), prompt("b", 10), prompt("c", 1)):
        batch.join(sequence)

    assert scheduled(batch) == [("a", 3), ("b", 5)]


def test_it_knows_what_is_missing() -> None:
    """
    All of the prompts that nobody computed, and a token of each that decodes.
    """
    batch = Batch(max_num_batched_tokens=8)
    for sequence in (prompt("a", 10, 4), prompt("b", 3), decoding("c")):
        batch.join(sequence)

    assert batch.num_missing_tokens == 6 + 3 + 1


def test_a_long_prompt_is_computed_in_chunks() -> None:
    """
    Step by step a prompt larger than the budget reaches its end.
    """
    batch = Batch(max_num_batched_tokens=8)
    sequence = prompt("a", 10)
    batch.join(sequence)
    sizes = []

    while sequence.num_output_tokens == 0:
        ((_, chunk),) = batch.schedule(4)
        sizes.append(len(chunk.token_ids))
        sequence.apply(chunk, Drawn(50) if chunk.sample_index is not None else None)

    assert sizes == [4, 4, 2]


def test_decoding_goes_before_prompts() -> None:
    """
    Somebody reads along with a decoding sequence: no prompt makes it skip a step.
    """
    batch = Batch(max_num_batched_tokens=2)
    for sequence in (prompt("p", 9), decoding("a"), decoding("b"), decoding("c")):
        batch.join(sequence)

    assert scheduled(batch) == [("a", 1), ("b", 1), ("c", 1)]


def test_who_left_is_not_scheduled() -> None:
    """
    A sequence that left the batch takes no part in the next step.
    """
    batch = Batch(max_num_batched_tokens=8)
    batch.join(decoding("a"))
    batch.join(decoding("b"))

    batch.leave(RequestId("a"))

    assert scheduled(batch) == [("b", 1)]
    assert len(batch) == 1
