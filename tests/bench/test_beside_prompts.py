"""Streams beside long prompts, simulated: what the real mesh measures on a GPU.

The H200's figures are those of bench/results/2026-11-27-gpu-h200.md.
"""

import pytest

from bench.mixed import Mix
from bench.simulation.costs import Costs
from bench.simulation.devices import DEVICES
from bench.simulation.shapes import SHAPES
from beside_prompts import Row, row, seen, systems

MIX = Mix(
    stream_rate=6,
    of_streams=(256, 256),
    of_prompts=(4096, 16),
    rate=2,
    seconds=10,
    vocab_size=500,
    seed="mix",
    settle_seconds=3,
)
H200 = systems(Costs(SHAPES["llama-3-8b"], DEVICES["h200"]))


@pytest.fixture(scope="module")
def rows() -> dict[str, Row]:
    return {name: row("h200", name, design, MIX) for name, design in H200.items()}


def test_what_is_measured_of_a_mesh_is_measured_of_a_simulated_one() -> None:
    """
    The prompts that arrive, all answered, and the gaps of the streams meanwhile.
    """
    both = seen(H200["semi 60/40"], MIX)

    assert len(both.prompts) == 20
    assert all(each.is_answered for each in both.prompts)
    assert both.began == MIX.settle_seconds
    # Six streams a second of 256 tokens.
    assert both.tokens_per_second == pytest.approx(6 * 256, rel=0.1)


def test_without_prompts_streams_are_alone() -> None:
    """
    The same streams at the same times.
    """
    alone = seen(H200["semi 60/40"], MIX, with_prompts=False)

    assert not alone.prompts
    assert len(alone.streams) == len(seen(H200["semi 60/40"], MIX).streams)


def test_a_split_keeps_long_prompts_from_streams(rows: dict[str, Row]) -> None:
    """
    Fused, each gap has a chunk of a prompt in it; split, a step takes a little longer. The
    prompt has a part of the SMs then, and takes longer too.
    """
    semi, fused = rows["semi 60/40"], rows["fused 512"]

    assert semi.itl_p99 < 0.7 * fused.itl_p99
    assert semi.times_alone < fused.times_alone
    assert fused.ttft_p50 < semi.ttft_p50 < 2 * fused.ttft_p50


def test_more_for_prompts_is_less_for_streams(rows: dict[str, Row]) -> None:
    """
    And the other way round.
    """
    even, most = rows["semi 50/50"], rows["semi 70/30"]

    assert most.ttft_p50 < even.ttft_p50
    assert most.itl_p99 > even.itl_p99
