"""Which shares a queue of prompts asks for."""

import random

import pytest

from kvstore.by_queue import (
    HALVES,
    LONG,
    MANY,
    PILE_TOKENS,
    PROMPTS_FIRST,
    WHOLE,
    ByQueue,
)

EACH = PILE_TOKENS // (MANY - 1)  # tokens of a prompt, of which so many just pile up


def seen(*queues: list[int]) -> ByQueue:
    by_queue = ByQueue()
    for queue in queues:
        by_queue.see(queue)
    return by_queue


@pytest.mark.parametrize(
    "queue",
    [
        [],
        [100_000],
        [EACH] * (MANY - 1),
        [EACH - 1] * MANY,
        [100_000] + [8] * 64,
    ],
    ids=["none", "a long one", "two", "just too short", "many short beside a long one"],
)
def test_few_prompts_or_tokens_are_no_pile(queue: list[int]) -> None:
    """
    Streams are not held up for what halves get done soon, nor for one long prompt.
    """
    assert seen(queue).shares == HALVES


@pytest.mark.parametrize(
    "queue", [[EACH] * MANY, [1, PILE_TOKENS, PILE_TOKENS], [64] * 64]
)
def test_many_prompts_with_many_tokens_get_the_whole_machine(queue: list[int]) -> None:
    """
    Then both phases may have everything, in turn.
    """
    assert seen(queue).shares == WHOLE


def test_on_a_slow_machine_fewer_tokens_are_a_pile() -> None:
    """
    A worker says how many; what it said last counts until it says more.
    """
    by_queue, queue = ByQueue(), [EACH // 4] * MANY

    by_queue.see(queue)
    before = by_queue.shares
    by_queue.see([], PILE_TOKENS // 4)
    by_queue.see(queue)

    assert (before, by_queue.shares) == (HALVES, WHOLE)


def test_a_pile_has_to_be_drained() -> None:
    """
    Below what made it a pile it goes on being one, down to the last token.
    """
    pile = [EACH] * MANY

    still = seen(pile, [EACH] * (MANY - 1), [1])
    drained = seen(pile, [])

    assert (still.shares, drained.shares) == (WHOLE, HALVES)


def test_in_a_long_pile_prompts_go_first() -> None:
    """
    Streams have what they need to go on, and prompts all else, down to the last token: a
    pile that was long does not become a short one.
    """
    long = [LONG * EACH] * MANY

    shares = [seen(long).shares, seen(long, [1]).shares, seen(long, []).shares]

    assert shares == [PROMPTS_FIRST, PROMPTS_FIRST, HALVES]


@pytest.mark.parametrize("first", [[], [EACH] * MANY], ids=["calm", "piled up"])
def test_a_queue_that_alternates_between_few_and_many_changes_nothing(
    first: list[int],
) -> None:
    """
    A prompt more and one less in turn, at every step: what is in force stays.
    """
    by_queue = seen(first)
    before = by_queue.shares

    found = set()
    for _ in range(100):
        for queue in ([EACH] * (MANY - 1), [EACH] * (MANY - 1) + [EACH // 2]):
            by_queue.see(queue)
            found.add(by_queue.shares)

    assert found == {before}


def test_a_pile_ends_only_by_work() -> None:
    """
    Prompts arrive in bursts, and a step computes 512 of their tokens: from one change to
    the next one back prompts are done that were in the pile.
    """
    rng, by_queue, queue = random.Random(7), ByQueue(), list[int]()
    num_done, done_in_piles = 0, list[int]()

    for _ in range(5000):
        queue += [rng.randint(1, 2048) for _ in range(rng.choice([0] * 9 + [4]))]
        before = by_queue.shares
        by_queue.see(queue)
        if by_queue.shares != before:
            if by_queue.shares == HALVES:
                done_in_piles.append(num_done)
            num_done = 0
        num_before = len(queue)
        queue = after_a_step(queue)
        num_done += num_before - len(queue)

    assert len(done_in_piles) > 50
    assert min(done_in_piles) >= MANY


def after_a_step(queue: list[int], budget: int = 512) -> list[int]:
    """What is left of each prompt, the first come first served."""
    left = []
    for tokens in queue:
        taken = min(tokens, budget)
        budget -= taken
        left.append(tokens - taken)
    return [tokens for tokens in left if tokens]
