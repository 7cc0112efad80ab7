"""The GPU's sampler: the host's answers, and of nothing but row, seed and index."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor
from triton_device import DEVICE

from engine import sampler
from engine.device_sampler import Choices, Table, choose, sample
from protocol.sampling import SamplingParams

# The interpreter computes by numpy, which warns of infinities times 0.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
IS_GPU = DEVICE == "cuda"
# The interpreter takes up to a tenth of a second for a row.
NUM_DRAWS, SHARE_ERROR = (4000, 0.03) if IS_GPU else (100, 0.1)
NUM_ROWS = 1000 if IS_GPU else 16
RESTRICTIONS: list[dict[str, float]] = [
    {},
    {"top_k": 1},
    {"top_k": 40},
    {"top_k": 2999},
    {"top_k": 10**12},
    {"min_p": 0.02},
    {"min_p": 1.0},
    {"top_p": 0.001},
    {"top_p": 0.5},
    {"top_p": 0.95, "temperature": 0.3},
    {"top_p": 0.999, "temperature": 10.0},
    {"top_k": 50, "top_p": 0.8},
    {"top_k": 5, "top_p": 0.9, "min_p": 0.3},
    {"top_k": 1000, "top_p": 0.9, "min_p": 0.001, "temperature": 2.0},
]


def params(**changes: object) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 8, **changes})


def logits_of(*probabilities: float) -> Tensor:
    return torch.tensor([probabilities], device=DEVICE).log()


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    random = torch.Generator().manual_seed(sum(shape))
    return (torch.randn(shape, generator=random) * 3).to(DEVICE, dtype)


def various(num_rows: int) -> list[SamplingParams]:
    """All restrictions in turn, and greedy rows between them."""
    kinds = [*RESTRICTIONS, {"temperature": 0.0}]
    return [params(seed=i, **kinds[i % len(kinds)]) for i in range(num_rows)]


def choices(
    logits: Tensor, chosen: list[SamplingParams], indices: Sequence[int]
) -> Choices:
    """Tokens as `sample` gives them, and floors."""
    table = Table.upload(chosen, indices, logits.shape[1], logits.device)
    return choose(logits, table)


def kept(logits: Tensor, chosen: list[SamplingParams]) -> Tensor:
    """Which logits may be drawn, [num_rows, vocab_size] on the host."""
    floors = choices(logits, chosen, range(len(chosen))).floors
    return (logits.float() >= floors[:, None]).cpu()


def kept_by_host(logits: Tensor, chosen: list[SamplingParams]) -> Tensor:
    """The same as `engine.sampler` restricts them."""
    weights = sampler._weights(logits.cpu(), [p.temperature for p in chosen])
    for row, p in zip(weights, chosen, strict=True):
        sampler._restrict(row, p)
    return torch.from_numpy(weights > 0.0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_greedy_takes_the_lowest_of_equals(dtype: torch.dtype) -> None:
    """Temperature 0 takes the greatest logit, and of equal ones the first of any tile."""
    logits = normal(4, 9001, dtype=dtype)
    logits[0, [8200, 33, 9000, 3]] = 90.0
    logits[1, [9000, 8199]] = 90.0
    logits[2] = -4.0
    logits[3, 1] = 90.0

    tokens = sample(logits, [params(temperature=0.0)] * 4, [0] * 4)

    assert tokens == [3, 8199, 0, 1]


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (params(), [0.5, 0.3, 0.15, 0.05]),
        (params(temperature=0.5), [0.685, 0.247, 0.062, 0.007]),
    ],
)
def test_frequencies_follow_the_parameters(
    chosen: SamplingParams, expected: list[float]
) -> None:
    """Tokens come up in the proportions of their weights."""
    logits = logits_of(0.5, 0.3, 0.15, 0.05).expand(NUM_DRAWS, -1)

    tokens = sample(logits, [chosen] * NUM_DRAWS, range(NUM_DRAWS))

    found = np.bincount(tokens, minlength=4) / NUM_DRAWS
    assert found.tolist() == pytest.approx(expected, abs=SHARE_ERROR)


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (params(), [1, 1, 1, 1]),
        (params(top_k=2), [1, 1, 0, 0]),
        (params(top_p=0.75), [1, 1, 0, 0]),
        (params(top_p=0.01), [1, 0, 0, 0]),
        (params(min_p=0.5), [1, 1, 0, 0]),
        # top_k leaves 0.53, 0.32 and 0.16, of which two make 80 per cent.
        (params(top_k=3, top_p=0.8), [1, 1, 0, 0]),
        # min_p comes before top_p, as in vLLM: 0.53 of what it leaves is enough.
        (params(min_p=0.25, top_p=0.52), [1, 0, 0, 0]),
    ],
)
def test_restrictions_follow_each_other(
    chosen: SamplingParams, expected: list[int]
) -> None:
    """Each restriction keeps the tokens it should, of those that the last one left."""
    found = kept(logits_of(0.5, 0.3, 0.15, 0.05), [chosen])

    assert found.int().tolist() == [expected]


@pytest.mark.parametrize("dtype", DTYPES)
def test_tokens_kept_are_those_of_the_host(dtype: torch.dtype) -> None:
    """All kinds of restriction, over logits of which bfloat16 ones are often equal."""
    logits = normal(len(RESTRICTIONS), 3001, dtype=dtype)
    chosen = [params(**restriction) for restriction in RESTRICTIONS]

    found = kept(logits, chosen)

    differs = found != kept_by_host(logits, chosen)
    has_nucleus = torch.tensor([p.top_p < 1.0 for p in chosen])
    assert not differs[~has_nucleus].any()
    # Where the sum is as good as top_p of the whole, rounding decides.
    assert differs[has_nucleus].sum() <= 1


@pytest.mark.parametrize("restriction", [{"top_k": 2}, {"top_p": 0.4}, {"min_p": 0.9}])
def test_ties_are_kept_together(restriction: dict[str, float]) -> None:
    """Tokens as likely as the last one kept are kept too, zeros of both signs also."""
    logits = torch.tensor([[-3.0, 0.0, 0.1, -0.0, -3.0, 0.0, -9.0]], device=DEVICE)

    found = kept(logits, [params(**restriction)])

    assert found.nonzero()[:, 1].tolist() == [1, 2, 3, 5]


def test_wide_nucleus_is_found() -> None:
    """A nucleus of thousands of equal tokens keeps all of these and no other."""
    flat = torch.zeros(1, 4096, device=DEVICE)
    flat[0, 3000:] = -20.0

    found = kept(flat, [params(top_p=0.999)])

    assert found.nonzero()[:, 1].tolist() == list(range(3000))


@pytest.mark.parametrize("vocab_size", [2, 3, 1000, 9001])
def test_tokens_are_those_of_the_host(vocab_size: int) -> None:
    """The same uniform numbers choose the same tokens, but where rounding decides."""
    logits = normal(NUM_ROWS, vocab_size, dtype=torch.bfloat16)
    chosen = various(NUM_ROWS)

    found = sample(logits, chosen, range(NUM_ROWS))

    expected = sampler.sample(logits.cpu(), chosen, range(NUM_ROWS))
    num_others = sum(a != b for a, b in zip(found, expected, strict=True))
    assert num_others <= NUM_ROWS // 500


def test_choice_ignores_batch_and_order() -> None:
    """A row's token and floor are the same alone, in company, in any order, to the bit.

    Most of these rows begin where a GPU cannot load 16 bytes at once.
    """
    logits, chosen = normal(15, 999, dtype=torch.bfloat16), various(15)
    order = torch.randperm(15, generator=torch.Generator().manual_seed(0)).tolist()

    together = choices(logits, chosen, range(15))
    mixed = choices(logits[order], [chosen[i] for i in order], order)
    alone = [sample(logits[i : i + 1], [chosen[i]], [i])[0] for i in range(15)]

    assert alone == together.tokens.tolist()
    assert mixed.tokens.equal(together.tokens[order])
    assert mixed.floors.equal(together.floors[order])


def test_rounding_hardly_ever_flips_a_draw() -> None:
    """Float noise of another batch shape moves less than one draw in ten thousand."""
    logits = normal(NUM_ROWS, 2048)
    noisy = logits + normal(NUM_ROWS, 2048).flip(0) * 3e-7

    before = sample(logits, [params()] * NUM_ROWS, range(NUM_ROWS))
    after = sample(noisy, [params()] * NUM_ROWS, range(NUM_ROWS))

    assert before == after


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_stop_tokens_wait_for_min_tokens(temperature: float) -> None:
    """A stop token is not drawn before `min_tokens` tokens exist, and then it is."""
    chosen = params(temperature=temperature, min_tokens=3, stop_token_ids=(0, 2, 9))
    logits = torch.tensor([[50.0, 0.0, 49.0]], device=DEVICE).expand(2, -1)

    tokens = sample(logits, [chosen] * 2, [2, 3])

    assert tokens == [1, 0]
    assert logits.tolist() == [[50.0, 0.0, 49.0]] * 2


@pytest.mark.parametrize("temperature", [1e-5, 1e-300])
def test_tiny_temperature_is_greedy(temperature: float) -> None:
    """A temperature near zero overflows nothing, whatever is left to draw from."""
    logits = torch.tensor([[1.0, 1.1, -3e38]], device=DEVICE).expand(3, -1)
    restrictions = [{}, {"top_p": 0.9}, {"top_k": 2, "min_p": 0.1}]
    chosen = [params(temperature=temperature, **each) for each in restrictions]

    tokens = sample(logits, chosen, range(3))

    assert tokens == [1, 1, 1]


def test_high_temperature_flattens() -> None:
    """At the highest temperature a logit of one less is nearly as likely."""
    logits = torch.tensor([[1.0, 0.0]], device=DEVICE).expand(NUM_DRAWS, -1)

    tokens = sample(logits, [params(temperature=10.0)] * NUM_DRAWS, range(NUM_DRAWS))

    assert np.mean(tokens) == pytest.approx(0.475, abs=SHARE_ERROR)


def test_impossible_tokens_are_never_drawn() -> None:
    """Logits of -inf and NaN stay out, though top_k and top_p would have room."""
    logits = torch.full((8, 300), -torch.inf, device=DEVICE)
    logits[:, [7, 260]] = 1.0
    logits[:, 100] = torch.nan
    chosen = [params(), params(top_k=5), params(top_p=0.999), params(min_p=0.1)] * 2

    tokens = sample(logits, chosen, range(8))

    assert set(tokens) == {7, 260}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_without_a_distribution_are_greedy(temperature: float) -> None:
    """Nothing but -inf, as when all is banned, gives token 0; +inf the first such."""
    logits = torch.full((2, 5), -torch.inf, device=DEVICE)
    logits[1, 3:] = torch.inf

    tokens = sample(logits, [params(temperature=temperature, top_p=0.9)] * 2, [0, 0])

    assert tokens == [0, 3]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_vocabulary_of_one_token(temperature: float) -> None:
    """It is drawn, also where it is banned."""
    chosen = params(temperature=temperature, min_tokens=1, stop_token_ids=(0,))

    tokens = sample(torch.ones(2, 1, device=DEVICE), [chosen] * 2, [0, 1])

    assert tokens == [0, 0]


def test_logits_may_be_part_of_a_wider_tensor() -> None:
    """Any strides give the same tokens, and the logits stay as they are."""
    wide, chosen = normal(6, 2100), various(6)
    part = wide[:, 77:1101]
    before = wide.clone()

    tokens = sample(part, chosen, range(6))

    assert tokens == sample(part.clone(), chosen, range(6))
    assert wide.equal(before)


def test_no_rows_no_tokens() -> None:
    """A step in which no chunk samples draws nothing."""
    assert sample(torch.empty(0, 8, device=DEVICE), [], []) == []
