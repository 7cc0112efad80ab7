"""Who computes what in a step."""

from engine.interface import Drawn
from kv.operations import Record
from protocol.messages import RequestId
from protocol.sampling import SamplingParams
from worker.batch import Batch
from worker.sequence import Sequence


def prompt(name: str, num_tokens: int) -> Sequence:
    record = Record(
        request_id=RequestId(name),
        generation=1,
        token_ids=tuple(range(num_tokens)),
        num_prompt_tokens=num_tokens,
        num_computed_tokens=0,
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


def advanced(batch: Batch) -> list[tuple[str, int]]:
    """What is scheduled, and computed; who has its first token leaves."""
    found = []
    for sequence, chunk in batch.schedule(batch.max_num_batched_tokens):
        found.append((sequence.request_id, len(chunk.token_ids)))
        is_last = chunk.sample_index is not None
        sequence.apply(chunk, Drawn(50) if is_last else None)
        if is_last:
            batch.leave(sequence.request_id)
    return found


def test_an_empty_batch_has_nothing_to_do() -> None:
    """
    Without sequences there is no step.
    """
    assert scheduled(Batch(max_num_batched_tokens=8)) == []


def test_prompts_share_a_step_up_to_the_budget() -> None:
    """
    Several prompts are packed into one step; one of them may go in part.
    """
    batch = Batch(max_num_batched_tokens=8)
    for sequence in (prompt("a", 3), prompt("b", 10), prompt("c", 1)):
        batch.join(sequence)

    assert scheduled(batch) == [("a", 3), ("b", 4), ("c", 1)]


def test_prompts_of_one_length_go_in_order_of_arrival() -> None:
    """
    None has less to do than the oldest, so each is done before the next one begins.
    """
    batch = Batch(max_num_batched_tokens=8)
    for name in ("a", "b", "c"):
        batch.join(prompt(name, 6))

    assert scheduled(batch) == [("a", 6), ("b", 2)]


def test_short_prompts_do_not_wait_for_a_long_one() -> None:
    """
    They have half of each step, those with the least to do first; it has the other, and
    what they leave.
    """
    batch = Batch(max_num_batched_tokens=8)
    batch.join(prompt("long", 100))
    for name, num_tokens in (("b", 5), ("c", 3)):
        batch.join(prompt(name, num_tokens))

    steps = [advanced(batch) for _ in range(3)]

    assert steps == [
        [("long", 4), ("b", 1), ("c", 3)],
        [("long", 4), ("b", 4)],
        [("long", 8)],
    ]


def test_a_long_prompt_has_half_of_each_step_whatever_comes() -> None:
    """
    Short prompts that never cease make it take twice as long, and no longer.
    """
    batch = Batch(max_num_batched_tokens=8)
    batch.join(prompt("long", 100))
    num_steps = 0

    while "long" in {sequence.request_id for sequence in batch.running}:
        batch.join(prompt(f"short {num_steps}", 8))
        advanced(batch)
        num_steps += 1

    assert num_steps == 25


def test_a_batch_knows_whether_its_next_step_has_prompts() -> None:
    """
    From the first one on until all have their first token; who decodes is no prompt.
    """
    batch = Batch(max_num_batched_tokens=8)
    found = [batch.has_prompts]

    for sequence in (decoding("a"), prompt("b", 10)):
        batch.join(sequence)
        found.append(batch.has_prompts)
    while batch.get(RequestId("b")):
        advanced(batch)
    found.append(batch.has_prompts)

    assert found == [False, False, True, False]


def test_a_long_prompt_is_computed_in_chunks() -> None:
    """
    Step by step a prompt larger than the budget reaches its end.
    """
    batch = Batch(max_num_batched_tokens=4)
    sequence = prompt("a", 10)
    batch.join(sequence)
    sizes = []

    while sequence.num_output_tokens == 0:
        ((_, chunk),) = batch.schedule(batch.max_num_batched_tokens)
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
