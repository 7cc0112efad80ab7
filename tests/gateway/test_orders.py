"""Calls become orders that the pool can serve."""

from typing import Any

import pytest

from gateway.errors import InvalidRequest
from gateway.model import Model
from gateway.openai import CompletionCall
from gateway.orders import Limits, Order, OrderBook

LIMITS = Limits(max_tokens=32, vocab_size=512)


def orders(model: Model, **fields: Any) -> list[Order]:
    call = CompletionCall.model_validate({"prompt": [5, 6], **fields})
    return OrderBook(model, LIMITS).orders(call, [5, 6], 16)


def order(model: Model, **fields: Any) -> Order:
    [only] = orders(model, **fields)
    return only


def test_an_answer_may_end_exactly_at_the_limit(model: Model) -> None:
    """Prompt and output together may be as long as the context, not longer."""
    assert order(model, max_tokens=30).sampling.max_tokens == 30
    with pytest.raises(InvalidRequest):
        order(model, max_tokens=31)


def test_end_tokens_are_stop_tokens_unless_ignored(model: Model) -> None:
    """ignore_eos leaves only the client's own stop tokens."""
    both = order(model, stop_token_ids=[9, 1])
    own = order(model, stop_token_ids=[9], ignore_eos=True)

    assert both.sampling.stop_token_ids == (1, 2, 9)
    assert own.sampling.stop_token_ids == (9,)
    assert own.client_stop_ids == {9}


def test_seeds_are_kept_or_drawn(model: Model) -> None:
    """A seed is used as given; without one every request has its own."""
    given = [order(model, seed=seed).sampling.seed for seed in (0, 7, 2**63 - 1)]
    drawn = {order(model).sampling.seed for _ in range(5)}
    any_seed = {order(model, seed=-1).sampling.seed for _ in range(5)}

    assert given == [0, 7, 2**63 - 1]
    assert len(drawn) == len(any_seed) == 5


def test_negative_seeds_are_as_good_as_others(model: Model) -> None:
    """A negative seed is the same number every time, in the range that workers take."""
    first, second = (order(model, seed=-5).sampling.seed for _ in range(2))

    assert first == second >= 0


def test_the_choices_of_a_seeded_call_have_seeds_of_their_own(model: Model) -> None:
    """They are the same every time, and choice 0 draws as if it were alone."""
    first, second = (
        [one.sampling.seed for one in orders(model, seed=7, n=4)] for _ in range(2)
    )
    neighbours = [one.sampling.seed for one in orders(model, seed=8, n=4)]

    assert first == second
    assert first[0] == 7
    assert len({*first, *neighbours}) == 8
    assert max(first) < 2**63


def test_a_prompt_counts_with_its_first_choice(model: Model) -> None:
    """However many answers it gets, a prompt is computed once."""
    counted = [one.num_counted_prompt_tokens for one in orders(model, n=3)]

    assert counted == [2, 0, 0]


def test_only_who_ranks_asks_for_log_probabilities(model: Model) -> None:
    """Without a best_of to pick by them, nobody has to compute them."""
    plain = [*orders(model, n=2), *orders(model, best_of=1)]
    ranked = orders(model, best_of=3)

    assert not any(one.sampling.logprobs for one in plain)
    assert [one.sampling.logprobs for one in ranked] == [True] * 3


def test_request_ids_are_never_the_same(model: Model) -> None:
    """Every order has an id of its own."""
    assert order(model).request_id != order(model).request_id
