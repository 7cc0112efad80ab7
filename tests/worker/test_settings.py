"""A worker's settings that only make sense together."""

import os

import pytest

from mesh.errors import ConfigurationError
from mesh.settings import load
from worker.settings import WorkerSettings
from worker.startup import model_fingerprint


def settings(monkeypatch: pytest.MonkeyPatch, **given: str) -> WorkerSettings:
    """As a worker reads them from an environment with just these."""
    environment = {f"TANDEM_{name.upper()}": value for name, value in given.items()}
    monkeypatch.setattr(os, "environ", environment)
    return load(WorkerSettings)


def test_nothing_is_quantized_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Whatever the dtype, weights are what the checkpoint has.
    """
    assert settings(monkeypatch).quantization == "none"
    assert settings(monkeypatch, dtype="bfloat16").quantization == "none"


def test_int8_goes_with_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Who asks for both gets both.
    """
    asked = settings(monkeypatch, dtype="bfloat16", quantization="int8")

    assert (asked.dtype, asked.quantization) == ("bfloat16", "int8")


@pytest.mark.parametrize("given", [{}, {"dtype": "float32"}], ids=["default", "said"])
def test_int8_with_float32_is_refused(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str]
) -> None:
    """
    float32 is for exact answers: no worker starts that would round its weights.
    """
    with pytest.raises(ConfigurationError) as refused:
        settings(monkeypatch, quantization="int8", **given)

    assert "TANDEM_QUANTIZATION" in str(refused.value)
    assert "TANDEM_DTYPE=bfloat16" in str(refused.value)


def test_int8_on_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The products with int8 are the CPU's.
    """
    with pytest.raises(ConfigurationError, match="TANDEM_DEVICE=cpu"):
        settings(monkeypatch, dtype="bfloat16", device="cuda", quantization="int8")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, 512),
        ({"phases": "prefill"}, 512),
        ({"phases": "both", "device": "cuda"}, 512),
        ({"phases": "prefill", "device": "cuda"}, 8192),
        ({"phases": "prefill", "device": "cuda", "max_num_batched_tokens": "64"}, 64),
    ],
)
def test_only_prompts_alone_on_a_gpu_take_long_steps(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], expected: int
) -> None:
    """
    Whoever also decodes makes its streams wait for a step's prompts; who is told a number
    takes that.
    """
    assert settings(monkeypatch, **given).step_tokens == expected


def test_an_int8_worker_is_not_of_a_bfloat16_pool(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """
    What workers compare before they share weights tells the two apart.
    """
    model = "models/stories260K"
    plain = settings(monkeypatch, dtype="bfloat16", model=model)
    small = settings(monkeypatch, dtype="bfloat16", model=model, quantization="int8")

    assert model_fingerprint(plain) != model_fingerprint(small)


def test_a_gpu_that_is_split_has_a_few_splits_to_change_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """
    Those of the ladder, if one is given, and the shares at first.
    """
    asked = [
        settings(monkeypatch, **given)
        for given in ({"shares": "40"}, {"shares": "40", "share_ladder": "20,80"})
    ]

    assert [each.splits for each in asked] == [[30, 40, 50, 70], [20, 40, 80]]
    assert all(each.asks_for_split for each in asked)
    assert not settings(monkeypatch).asks_for_split
    with pytest.raises(ConfigurationError, match="TANDEM_SHARE_LADDER"):
        settings(monkeypatch, share_ladder="20,100")
