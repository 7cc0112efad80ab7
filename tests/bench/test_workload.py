"""Requests of a benchmark: exact lengths, and nothing shared by accident."""

from itertools import pairwise
from pathlib import Path
from statistics import fmean

import pytest

from bench.workload import FIRST_TOKEN, Planned, Scaling, fixed, poisson, replayed
from mesh.errors import ConfigurationError

VOCAB = 1000
MOONCAKE = """\
{"timestamp": 0, "input_length": 700, "output_length": 50, "hash_ids": [0, 1]}
{"timestamp": 2000, "input_length": 600, "output_length": 20, "hash_ids": [0, 7]}
{"timestamp": 3000, "input_length": 900, "output_length": 9000, "hash_ids": [0, 8]}
"""
AZURE = """\
TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.6805900,396,109
"""


@pytest.fixture
def mooncake(tmp_path: Path) -> Path:
    path = tmp_path / "trace.jsonl"
    path.write_text(MOONCAKE)
    return path


@pytest.fixture
def azure(tmp_path: Path) -> Path:
    path = tmp_path / "trace.csv"
    path.write_text(AZURE)
    return path


def lengths(planned: list[Planned]) -> list[tuple[int, int]]:
    return [(len(each.prompt), each.max_tokens) for each in planned]


def test_fixed_prompts_share_nothing() -> None:
    """
    All have the asked lengths, no two begin alike, not those of another load either,
    which a server might remember, and another seed asks others.
    """
    planned = fixed(50, 256, 64, VOCAB, seed=1)

    assert lengths(planned) == [(256, 64)] * 50
    assert len({each.prompt[:16] for each in planned}) == 50
    assert all(FIRST_TOKEN <= t < VOCAB for each in planned for t in each.prompt)
    assert planned == fixed(50, 256, 64, VOCAB, seed=1)
    assert planned != fixed(50, 256, 64, VOCAB, seed=2)
    assert planned[0].prompt[:16] != fixed(1, 512, 2, VOCAB, seed=1)[0].prompt[:16]


def test_poisson_arrivals_have_their_rate() -> None:
    """
    The gaps are exponential: their mean is the rate's inverse, and so is their spread.
    """
    planned = poisson(fixed(4000, 1, 1, VOCAB, 0), rate=20, seed=0)

    gaps = [b.at - a.at for a, b in pairwise(planned)]
    mean = fmean(gaps)
    assert mean == pytest.approx(1 / 20, rel=0.1)
    assert fmean((gap - mean) ** 2 for gap in gaps) == pytest.approx(1 / 20**2, rel=0.2)


def test_equal_hashes_are_equal_tokens(mooncake: Path) -> None:
    """
    Requests of Mooncake's trace share as many tokens as their blocks' hashes say.
    """
    first, second, _ = replayed(mooncake, 3, VOCAB, Scaling(), seed=0)

    assert lengths([first, second]) == [(700, 50), (600, 20)]
    assert first.prompt[:512] == second.prompt[:512]
    assert first.prompt[512:520] != second.prompt[512:520]
    assert (first.at, second.at) == (0, 2)


def test_a_trace_is_scaled_to_a_small_machine(mooncake: Path) -> None:
    """
    Shorter, faster, and without what is too long.
    """
    scaling = Scaling(lengths=0.1, speed=4, max_total=200)

    planned = replayed(mooncake, 10, VOCAB, scaling, seed=0)

    assert lengths(planned) == [(70, 5), (60, 2)]
    assert planned[1].at == 0.5
    assert planned[0].prompt[:51] == planned[1].prompt[:51]


def test_azure_s_trace_has_lengths_and_times(azure: Path) -> None:
    """
    Its times have seven digits after the second's point.
    """
    planned = replayed(azure, 10, VOCAB, Scaling(), seed=0)

    assert lengths(planned) == [(374, 44), (396, 109)]
    assert planned[1].at == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", "{}"),
        ("b.jsonl", "not json"),
        ("c.csv", "some,other\n1,2\n"),
        ("d.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\nnever,1,2\n"),
    ],
)
def test_what_is_no_trace_is_said(tmp_path: Path, name: str, text: str) -> None:
    """
    The error names the file.
    """
    path = tmp_path / name
    path.write_text(text)

    with pytest.raises(ConfigurationError, match=name):
        replayed(path, 1, VOCAB, Scaling(), seed=0)


def test_a_trace_of_which_nothing_fits_is_said(azure: Path) -> None:
    """
    Rather than a report of no requests.
    """
    with pytest.raises(ConfigurationError, match="at most 100"):
        replayed(azure, 1, VOCAB, Scaling(max_total=100), seed=0)
