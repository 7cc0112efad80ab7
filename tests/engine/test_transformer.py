"""The engine computes what transformers computes, wherever and with whomever it runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from engine.interface import Chunk, Drawn
from protocol.sampling import SamplingParams

SAMPLED = SamplingParams(temperature=0.9, top_p=0.95, seed=11, max_tokens=64)
GREEDY = SAMPLED.changed(temperature=0.0)

Fixture = Callable[..., Any]


def prompts_of(*lengths: int) -> list[list[int]]:
    numbers = torch.Generator().manual_seed(sum(lengths))
    return [torch.randint(3, 96, (n,), generator=numbers).tolist() for n in lengths]


def test_every_family_answers_as_generate_does(
    each_family: Path, memory_of: Fixture, play: Fixture, reference: Fixture
) -> None:
    """Packed, chunked and scattered, greedy output is `generate`'s, token for token."""
    prompts = prompts_of(41, 3, 18)  # the first is longer than any sliding window here
    engine = memory_of(each_family).engine()

    outputs = play(engine, prompts, 20)

    assert outputs == reference(each_family, prompts, 20)


def test_real_model_tells_its_story(
    stories: Path, memory_of: Fixture, play: Fixture
) -> None:
    """From the first token alone, the small real model tells its known story."""
    engine = memory_of(stories).engine()

    [story] = play(engine, [[1]], 60)

    text = Tokenizer.from_file(str(stories / "tokenizer.json")).decode(story)
    assert text == (
        "Once upon a time, there was a little girl named Lily. She loved to play "
        "outside in the park. One day, she saw a big, red ball. She wanted to play "
        "with it, but it was too high"
    )


def test_real_model_answers_as_generate_does(
    stories: Path, memory_of: Fixture, play: Fixture, reference: Fixture
) -> None:
    """Over hundreds of tokens and several sequences, not one differs."""
    prompts = [[1], *prompts_of(90, 7)]

    outputs = play(memory_of(stories).engine(), prompts, 200)

    assert outputs == reference(stories, prompts, 200)


def test_bfloat16_model_stays_near_float32(
    stories: Path, memory_of: Fixture, play: Fixture
) -> None:
    """In bfloat16 the story begins the same: rounding, not another model."""
    exact = memory_of(stories, "float32").engine()
    rounded = memory_of(stories, "bfloat16").engine()

    [expected], [story] = play(exact, [[1]], 20), play(rounded, [[1]], 20)

    assert story == expected


def test_draw_does_not_depend_on_company(
    stories: Path, memory_of: Fixture, play: Fixture
) -> None:
    """A seeded sequence has the same tokens alone, packed, and in other chunks."""
    engine = memory_of(stories).engine()
    prompts = prompts_of(33, 8, 50)

    together = play(engine, prompts, 60, SAMPLED)
    alone = [play(engine, [prompt], 60, SAMPLED)[0] for prompt in prompts]

    assert together == alone


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_second_engine_continues(
    stories: Path,
    memory_of: Fixture,
    sequences_of: Fixture,
    play: Fixture,
    sampling: SamplingParams,
) -> None:
    """An adopter over the same memory goes on where the first engine stopped."""
    memory, prompts = memory_of(stories), prompts_of(21, 4)
    expected = play(memory_of(stories).engine(), prompts, 30, sampling)

    sequences = sequences_of(prompts, sampling)
    first = memory.engine()
    for _ in range(11):
        sequences.step(first, 30)
    second = memory.engine()
    while not sequences.are_done(30):
        sequences.step(second, 30)

    assert sequences.outputs() == expected


def test_rows_without_sample_index_answer_none(
    stories: Path, memory_of: Fixture
) -> None:
    """A chunk that ends before its prompt does gives no token, its neighbour one."""
    engine = memory_of(stories).engine()
    unfinished = Chunk([1, 2, 3], 0, [4], GREEDY, None)
    finished = Chunk([1], 0, [5], GREEDY, 0)

    tokens = engine.step([unfinished, finished])

    assert tokens[0] is None
    assert isinstance(tokens[1], Drawn)


def test_log_probabilities_come_to_those_who_asked(
    stories: Path, memory_of: Fixture
) -> None:
    """Of two equal rows each has the same token, and one how likely it is."""
    engine = memory_of(stories).engine()
    asking = GREEDY.changed(logprobs=True)

    silent, told = engine.step(
        [Chunk([1, 9], 0, [4], GREEDY, 0), Chunk([1, 9], 0, [5], asking, 0)]
    )

    assert silent.token_id == told.token_id
    assert silent.logprob is None
    assert -10 < told.logprob < 0


def test_step_writes_only_its_slots(stories: Path, memory_of: Fixture) -> None:
    """A step changes the slots of its own tokens, and no other byte of the blocks."""
    memory = memory_of(stories)
    block_bytes = memory.checkpoint.geometry.block_bytes

    memory.engine().step([Chunk([1, 9], 0, [7, 2], GREEDY, 0)])

    touched = {
        block
        for block in range(len(memory.blocks) // block_bytes)
        if set(memory.blocks[block * block_bytes : (block + 1) * block_bytes]) != {255}
    }
    assert touched == {7}


def test_warm_up_leaves_shared_blocks_alone(stories: Path, memory_of: Fixture) -> None:
    """Warming up touches no block: other workers may be using all of them."""
    memory = memory_of(stories)

    memory.engine().warm_up()

    assert set(memory.blocks) == {255}


@pytest.mark.parametrize("name", ["phi3-longrope", "llama-dynamic", "gemma3"])
def test_weights_stay_as_they_are(
    family: Fixture, memory_of: Fixture, play: Fixture, name: str
) -> None:
    """No step writes to a weight or buffer, rotary frequencies included."""
    memory = memory_of(family(name))
    before = bytes(memory.weights)

    play(memory.engine(), prompts_of(30, 5), 4)

    assert bytes(memory.weights) == before
