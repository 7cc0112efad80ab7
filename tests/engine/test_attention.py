"""What our attention function refuses, by name."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from engine.attention import ScoreRule, attend
from engine.errors import UnsupportedModel


class Recorder:
    """Remembers the rule that a call led to."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, ScoreRule]] = []

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: ScoreRule
    ) -> Tensor:
        self.calls.append((layer, rule))
        return query


def call(recorder: Recorder | None, **arguments: Any) -> Tensor:
    module = nn.Module()
    module.layer_idx = arguments.pop("layer_idx", 2)
    module.is_causal = True
    states = torch.zeros(1, 3, 5, 4)
    mask = arguments.pop("attention_mask", None)
    arguments = {"paged_attention": recorder, "scaling": 0.5, **arguments}
    return attend(module, states, states, states, mask, **arguments)[0]


def test_call_reaches_the_step() -> None:
    """Layer, scaling, window and cap arrive, and heads come before tokens back."""
    recorder = Recorder()

    output = call(recorder, sliding_window=7, softcap=30.0, dropout=0.0, use_cache=True)

    assert output.shape == (1, 5, 3, 4)
    assert recorder.calls == [(2, ScoreRule(scaling=0.5, window=7, softcap=30.0))]


def test_scaling_defaults_to_the_head_dim() -> None:
    """Without a scaling, scores are divided by the root of the head dim."""
    recorder = Recorder()

    call(recorder, scaling=None)

    assert recorder.calls == [(2, ScoreRule(scaling=0.5))]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"s_aux": torch.zeros(3)}, "'s_aux'"),
        ({"position_bias": torch.zeros(3)}, "'position_bias'"),
        ({"is_causal": False}, "later tokens"),
        ({"dropout": 0.1}, "at random"),
        ({"attention_mask": torch.zeros(1)}, "mask of its own"),
        ({"layer_idx": None}, "which layer"),
    ],
)
def test_what_is_not_honoured_is_refused(
    arguments: dict[str, Any], reason: str
) -> None:
    """An argument that would change the answer is refused, not ignored."""
    recorder = Recorder()

    with pytest.raises(UnsupportedModel) as refused:
        call(recorder, **arguments)

    assert reason in refused.value.reason
    assert not recorder.calls


def test_call_without_a_step_is_refused() -> None:
    """A model that drops keyword arguments on the way down cannot be served."""
    with pytest.raises(UnsupportedModel) as refused:
        call(None)

    assert "keyword arguments" in refused.value.reason
