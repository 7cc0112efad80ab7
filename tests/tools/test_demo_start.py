"""How the demo model begins: it can copy before it has learnt anything."""

import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import LlamaForCausalLM

from demo_start import begin
from demo_training import configuration

NUM_TOKENS = 60


def fresh(tokenizer: Tokenizer, seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM._from_config(
        configuration(tokenizer), attn_implementation="eager"
    )


@pytest.fixture(scope="module")
def begun(tokenizer: Tokenizer) -> LlamaForCausalLM:
    model = fresh(tokenizer)
    begin(model)
    return model


@pytest.fixture(scope="module")
def repeated() -> Tensor:
    """Different tokens, and the same once more."""
    generator = torch.Generator().manual_seed(1)
    once = 10 + torch.randperm(4000, generator=generator)[:NUM_TOKENS]
    return once.repeat(2)[None]


def attention(model: LlamaForCausalLM, ids: Tensor, layer: int) -> Tensor:
    """[heads, queries, keys] of one layer."""
    with torch.no_grad():
        weights = model(ids, output_attentions=True).attentions[layer]
    return weights[0]


def copied(model: LlamaForCausalLM, ids: Tensor) -> float:
    """How often the second half is foretold."""
    with torch.no_grad():
        foretold = model(ids).logits[0].argmax(-1)
    half = slice(NUM_TOKENS, 2 * NUM_TOKENS - 1)
    return (foretold[half] == ids[0, 1:][half]).float().mean().item()


@pytest.mark.parametrize("head", [0, 1, 2])
def test_the_first_heads_look_back(
    begun: LlamaForCausalLM, repeated: Tensor, head: int
) -> None:
    """
    One, two and three tokens, wherever they are and whatever they say.
    """
    weights = attention(begun, repeated, layer=0)[head]

    assert weights.diagonal(-(head + 1))[3:].mean() > 0.8


@pytest.mark.parametrize("head", [3, 4])
def test_heads_of_the_second_layer_look_for_what_followed(
    begun: LlamaForCausalLM, repeated: Tensor, head: int
) -> None:
    """
    The second time they look at the token after the one that is read again.
    """
    weights = attention(begun, repeated, layer=1)[head]

    assert weights.diagonal(1 - NUM_TOKENS)[3:].mean() > 0.3


def test_one_head_looks_for_the_end_of_the_question(
    begun: LlamaForCausalLM, repeated: Tensor
) -> None:
    """
    For the last word but for a question mark and two marks of the chat's format.
    """
    weights = attention(begun, repeated, layer=1)[0]

    assert weights.diagonal(-NUM_TOKENS - 2)[3:].mean() > 0.2


def test_it_finds_who_untrained(begun: LlamaForCausalLM, tokenizer: Tokenizer) -> None:
    """
    Of all names it says the one before what the question ends with.
    """
    text = "Carl visits Madrid. Elena visits Oslo. John visits Lima."
    asked = f"<s><|user|>{text}\n\nWho visits Oslo?<|end|><|assistant|>"
    with torch.no_grad():
        logits = begun(torch.tensor([tokenizer.encode(asked).ids])).logits[0, -1]

    names = {n: tokenizer.encode(f"{n} ").ids[0] for n in ("Carl", "Elena", "John")}
    assert max(names, key=lambda name: float(logits[names[name]])) == "Elena"


def test_it_copies_untrained(
    begun: LlamaForCausalLM, tokenizer: Tokenizer, repeated: Tensor
) -> None:
    """
    What was read once is foretold when it comes again; a usual beginning knows nothing.
    """
    assert copied(begun, repeated) > 0.3
    assert copied(fresh(tokenizer), repeated) < 0.03


def test_a_beginning_is_repeatable(tokenizer: Tokenizer) -> None:
    """
    The same seed gives the same weights, another seed others.
    """
    models = [fresh(tokenizer, seed) for seed in (3, 3, 4)]
    for seed, model in zip((3, 3, 4), models, strict=True):
        torch.manual_seed(seed)
        begin(model)

    once, again, other = (list(model.parameters()) for model in models)
    assert all(map(torch.equal, once, again))
    assert not all(map(torch.equal, once, other))
