"""One request's tokens become text until it ends."""

from itertools import pairwise

import pytest

from gateway.model import Model
from gateway.openai import CompletionCall
from gateway.orders import Limits, Order, OrderBook
from gateway.output import Delta, Output

LIMITS = Limits(max_tokens=128, vocab_size=512)
ONCE_UPON_A_TIME = [403, 407, 261, 378]
CUTS = [[0, 4], [0, 1, 4], [0, 3, 4], [0, 2, 3, 4], [0, 1, 2, 3, 4]]


def ordered(model: Model, **fields: object) -> Order:
    """An order for a call with these fields."""
    call = CompletionCall.model_validate({"prompt": [1], **fields})
    [order] = OrderBook(model, LIMITS).orders(call, [1], 16)
    return order


def output(model: Model, **fields: object) -> Output:
    return Output(ordered(model, **fields), model.detokenizer([1]))


@pytest.mark.parametrize("cuts", CUTS)
def test_batches_of_tokens_do_not_matter(model: Model, cuts: list[int]) -> None:
    """A stop string cuts text and tokens at the same place, however they arrive."""
    cut = output(model, stop=["a t"])

    deltas: list[Delta] = []
    for start, end in pairwise(cuts):
        deltas.append(cut.push(ONCE_UPON_A_TIME[start:end], None))

    assert "".join(delta.text for delta in deltas) == "Once upon "
    assert (deltas[-1].finish_reason, deltas[-1].stop_reason) == ("stop", "a t")
    assert cut.num_tokens == 4


def test_tokens_after_a_stop_string_do_not_count(model: Model) -> None:
    """What came with the stop string's last token but after it is not the answer's."""
    cut = output(model, stop=["upon"])

    delta = cut.push(ONCE_UPON_A_TIME, None)

    assert (delta.text, list(delta.token_ids)) == ("Once ", [403, 407])
    assert cut.num_tokens == 2


def test_stop_strings_wait_for_min_tokens(model: Model) -> None:
    """Within the first min_tokens tokens a stop string is only text."""
    patient = output(model, stop=["n"], min_tokens=2)

    delta = patient.push([403, 407, 261, 378, 403], None)

    assert delta.text.startswith("Once upon a time")
    assert delta.stop_reason == "n"


def test_what_is_held_back_comes_with_the_end(model: Model) -> None:
    """A beginning of a stop string is shown when the answer ends otherwise."""
    held = output(model, stop=["time after time"])

    first = held.push(ONCE_UPON_A_TIME, None)
    last = held.push([], "length")

    assert (first.text, last.text) == ("Once upon a ", "time")
    assert last.finish_reason == "length"


def test_text_without_a_tokenizer_is_empty(model: Model) -> None:
    """A model without a tokenizer still has tokens."""
    bare = Model(model.name, model.eos_ids, model.sampling, tokenizer=None)

    delta = output(bare).push([5, 6], "length")

    assert (delta.text, list(delta.token_ids)) == ("", [5, 6])
