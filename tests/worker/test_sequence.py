"""A sequence in its owner's hands."""

import pytest

from engine.interface import Drawn
from kv.operations import Record
from protocol.messages import RequestId
from protocol.sampling import SamplingParams
from worker.sequence import Sequence


def sequence(
    *token_ids: int,
    num_prompt_tokens: int = 3,
    num_computed_tokens: int = 0,
    logprobs: tuple[float, ...] = (),
    sampling: SamplingParams | None = None,
) -> Sequence:
    record = Record(
        request_id=RequestId("r1"),
        generation=1,
        token_ids=token_ids,
        num_prompt_tokens=num_prompt_tokens,
        logprobs=logprobs,
        num_computed_tokens=num_computed_tokens,
        num_cached_tokens=0,
        block_size=4,
        block_table=(0, 1),
        sampling=sampling or SamplingParams(max_tokens=5, stop_token_ids=(9,)),
        reply_to="g1",
    )
    return Sequence.from_record(record)


def test_a_prompt_is_a_long_chunk() -> None:
    """
    The chunk that reaches the sequence's end samples its next token.
    """
    chunk = sequence(1, 2, 3).chunk(max_tokens=10)

    assert list(chunk.token_ids) == [1, 2, 3]
    assert chunk.sample_index == 0


def test_a_chunk_that_ends_early_samples_nothing() -> None:
    """
    A prompt may be computed in parts, and only the last part yields a token.
    """
    chunk = sequence(1, 2, 3).chunk(max_tokens=2)

    assert list(chunk.token_ids) == [1, 2]
    assert chunk.sample_index is None


def test_a_decoding_sequence_is_a_chunk_of_one() -> None:
    """
    The newest token is the only one without K/V, and the next step computes it.
    """
    decoding = sequence(1, 2, 3, 50, num_computed_tokens=3)

    chunk = decoding.chunk(max_tokens=10)

    assert decoding.is_decoding
    assert list(chunk.token_ids) == [50]
    assert chunk.sample_index == 1


def test_a_step_moves_the_sequence_on() -> None:
    """
    After a step the computed tokens have grown and the sampled one is the newest.
    """
    running = sequence(1, 2, 3)

    progress = running.apply(running.chunk(10), Drawn(50))

    assert running.token_ids == [1, 2, 3, 50]
    assert (progress.num_computed_tokens, progress.token_ids) == (3, (50,))


@pytest.mark.parametrize(
    ("token_ids", "reason"),
    [
        ((1, 2, 9), None),
        ((1, 2, 3, 50), None),
        ((1, 2, 3, 50, 9), "stop"),
        ((1, 2, 3, 50, 51, 52, 53, 54), "length"),
        ((1, 2, 3, 50, 51, 52, 53, 9), "stop"),
    ],
    ids=["stop in prompt", "running", "stop", "length", "stop at the limit"],
)
def test_the_end_is_a_function_of_the_tokens(
    token_ids: tuple[int, ...], reason: str | None
) -> None:
    """
    Whoever sees the tokens sees whether the sequence has ended, and why.
    """
    assert sequence(*token_ids).finish_reason == reason


def test_min_tokens_keeps_a_sequence_alive() -> None:
    """
    A stop token among the first `min_tokens` does not end the sequence.
    """
    sampling = SamplingParams(max_tokens=5, min_tokens=2, stop_token_ids=(9,))

    early = sequence(1, 2, 3, 50, 9, sampling=sampling)
    late = sequence(1, 2, 3, 50, 51, 9, sampling=sampling)

    assert early.finish_reason is None
    assert late.finish_reason == "stop"


def test_a_new_owner_repeats_the_output_once() -> None:
    """
    The first event of an owner holds the whole output, the next ones what is new.
    """
    adopted = sequence(1, 2, 3, 50, 51, num_computed_tokens=4)
    adopted.apply(adopted.chunk(1), Drawn(52))

    first = adopted.publish()
    adopted.apply(adopted.chunk(1), Drawn(53))
    second = adopted.publish()

    assert (first.index, first.token_ids) == (0, (50, 51, 52))
    assert (second.index, second.token_ids) == (3, (53,))


def test_log_probabilities_go_where_their_tokens_go() -> None:
    """
    What the store records and the gateway hears has one of them for each token.
    """
    adopted = sequence(1, 2, 3, 50, num_computed_tokens=3, logprobs=(-0.5,))

    progress = adopted.apply(adopted.chunk(1), Drawn(51, logprob=-1.5))
    first = adopted.publish()
    adopted.apply(adopted.chunk(1), Drawn(52, logprob=-2.5))
    second = adopted.publish()

    assert progress.logprobs == (-1.5,)
    assert (first.token_ids, first.logprobs) == ((50, 51), (-0.5, -1.5))
    assert (second.token_ids, second.logprobs) == ((52,), (-2.5,))


def test_without_being_asked_nobody_hears_log_probabilities() -> None:
    """
    An ordinary request's steps and events carry none.
    """
    running = sequence(1, 2, 3)

    progress = running.apply(running.chunk(10), Drawn(50))

    assert progress.logprobs == running.publish().logprobs == ()
