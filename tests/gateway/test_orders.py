"""Calls become orders that the pool can serve."""

from typing import Any

import pytest

from gateway.errors import InvalidRequest
from gateway.model import Model
from gateway.openai import CompletionCall
from gateway.orders import Limits, Order, OrderBook
from protocol.messages import PoolStatus

LIMITS = Limits(max_tokens=32, vocab_size=512)


def order(model: Model, **fields: Any) -> Order:
    call = CompletionCall.model_validate({"prompt": [5, 6], **fields})
    return OrderBook(model, LIMITS).order(call, [5, 6], 16)


def test_a_small_pool_limits_the_context() -> None:
    """What fits is the smaller of the model's context and the pool's memory."""
    pool = PoolStatus(
        pool="default",
        model="m",
        block_size=4,
        max_model_len=100,
        vocab_size=10,
        num_waiting=0,
        num_parked=0,
        total=3,
        free=3,
        cached=0,
        referenced=0,
        quarantined=0,
    )

    assert Limits.of(pool).max_tokens == 12


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


def test_request_ids_are_never_the_same(model: Model) -> None:
    """Every order has an id of its own."""
    assert order(model).request_id != order(model).request_id
