"""Draws follow the distribution, and depend on nothing but row, seed and index."""

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.sampler import log_probabilities, sample, uniform
from protocol.sampling import SamplingParams

NUM_DRAWS = 4000


def params(**changes: object) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 8, **changes})


def logits_of(*probabilities: float) -> Tensor:
    return torch.tensor([probabilities]).log()


def frequencies(row: Tensor, chosen: SamplingParams) -> list[float]:
    """How often each token comes up over many output positions of one seed."""
    rows = row.expand(NUM_DRAWS, -1)
    tokens = sample(rows, [chosen] * NUM_DRAWS, range(NUM_DRAWS))
    return (np.bincount(tokens, minlength=row.shape[1]) / NUM_DRAWS).tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("least", [0.0, -1.0, -3.0, 1.0])
def test_greedy_takes_the_lowest_of_equals(dtype: torch.dtype, least: float) -> None:
    """Temperature 0 takes the greatest logit, and of equal ones the first, also where
    all are negative, or nothing."""
    logits = torch.tensor([[0.0, 2.0, 2.0], [2.0, -0.0, -1.0], [-1.0, 0.0, 0.0]])

    tokens = sample((logits + least).to(dtype), [params(temperature=0.0)] * 3, [0] * 3)

    assert tokens == [1, 0, 1]


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (params(), [0.5, 0.3, 0.15, 0.05]),
        (params(temperature=0.5), [0.685, 0.247, 0.062, 0.007]),
        (params(top_k=2), [0.625, 0.375, 0, 0]),
        (params(top_p=0.75), [0.625, 0.375, 0, 0]),
        (params(top_p=0.01), [1, 0, 0, 0]),
        (params(min_p=0.5), [0.625, 0.375, 0, 0]),
        # top_k leaves 0.53, 0.32 and 0.16, of which two make 80 per cent.
        (params(top_k=3, top_p=0.8), [0.625, 0.375, 0, 0]),
        # min_p comes before top_p, as in vLLM: 0.53 of what it leaves is enough.
        (params(min_p=0.25, top_p=0.52), [1, 0, 0, 0]),
    ],
)
def test_frequencies_follow_the_parameters(
    chosen: SamplingParams, expected: list[float]
) -> None:
    """Each restriction keeps the tokens it should, in their proportions."""
    found = frequencies(logits_of(0.5, 0.3, 0.15, 0.05), chosen)

    assert found == pytest.approx(expected, abs=0.03)
    assert [share == 0 for share in found] == [share == 0 for share in expected]


def test_wide_nucleus_is_found() -> None:
    """A nucleus of more tokens than the first candidates keeps just those it needs."""
    flat = torch.zeros(1, 4096)
    flat[0, 3000:] = -20.0

    tokens = sample(flat.expand(500, -1), [params(top_p=0.999)] * 500, range(500))

    assert max(tokens) < 3000
    assert len(set(tokens)) > 400


def test_draw_ignores_batch_and_order() -> None:
    """A row's token is the same alone, in company, and in any order."""
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(20, 1000, generator=random)
    chosen = [params(seed=i, top_p=1 - i / 40, top_k=i * 3) for i in range(20)]
    order = torch.randperm(20, generator=random).tolist()

    together = sample(logits, chosen, range(20))
    alone = [sample(logits[i : i + 1], [chosen[i]], [i])[0] for i in range(20)]
    mixed = sample(logits[order], [chosen[i] for i in order], order)

    assert alone == together
    assert mixed == [together[i] for i in order]


def test_rounding_hardly_ever_flips_a_draw() -> None:
    """Float noise of another batch shape moves less than one draw in ten thousand."""
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(2000, 4096, generator=random) * 2
    noisy = logits + torch.randn(logits.shape, generator=random) * 1e-6

    before = sample(logits, [params()] * 2000, range(2000))
    after = sample(noisy, [params()] * 2000, range(2000))

    assert before == after


def test_streams_of_neighbouring_seeds_are_unrelated() -> None:
    """Seeds 0, 1, 2, ... give uniform numbers that do not follow each other."""
    seeds, indices = np.arange(100, dtype=np.uint64), np.arange(100, dtype=np.uint64)

    numbers = np.stack([uniform(np.full(100, s), indices, 0) for s in seeds])

    assert numbers.min() >= 0.0
    assert numbers.max() < 1.0
    assert numbers.mean() == pytest.approx(0.5, abs=0.01)
    assert len(np.unique(numbers)) == numbers.size
    assert abs(np.corrcoef(numbers[:-1].ravel(), numbers[1:].ravel())[0, 1]) < 0.03


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_stop_tokens_wait_for_min_tokens(temperature: float) -> None:
    """A stop token is not drawn before `min_tokens` tokens exist, and then it is."""
    chosen = params(temperature=temperature, min_tokens=3, stop_token_ids=(0, 9))
    logits = torch.tensor([[50.0, 0.0]]).expand(2, -1)

    tokens = sample(logits, [chosen] * 2, [2, 3])

    assert tokens == [1, 0]
    assert logits[0, 0] == 50.0


def test_tiny_temperature_is_greedy() -> None:
    """A temperature near zero overflows nothing."""
    tokens = sample(torch.tensor([[1.0, 1.1]]), [params(temperature=1e-300)], [0])

    assert tokens == [1]


def test_rows_with_and_without_temperature_mix() -> None:
    """Greedy rows stay greedy beside drawn ones."""
    logits = logits_of(0.5, 0.3, 0.2).expand(3, -1)
    mixed = [params(temperature=0.0), params(seed=4), params(temperature=0.0)]

    tokens = sample(logits, mixed, [0, 0, 0])

    assert tokens == [0, *sample(logits[:1], [mixed[1]], [0]), 0]


def test_no_rows_no_tokens() -> None:
    """A step in which no chunk samples draws nothing."""
    assert sample(torch.empty(0, 8), [], []) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_log_probabilities_are_those_of_the_model(dtype: torch.dtype) -> None:
    """Temperature and truncation choose the token, and say not how likely it is."""
    random = torch.Generator().manual_seed(0)
    logits = (torch.randn(20, 1000, generator=random) * 3).to(dtype)
    tokens = sample(logits, [params(temperature=0.3, top_k=2)] * 20, range(20))

    found = log_probabilities(logits, tokens)

    whole = torch.log_softmax(logits.float(), dim=-1)
    assert found == [whole[row, token].item() for row, token in enumerate(tokens)]
