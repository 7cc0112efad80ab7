"""Streams beside long prompts, simulated: what bench/gpu_mesh.py measures of real meshes."""

import json
import sys
from dataclasses import replace

import pytest

from bench.mixed import Mix
from bench.simulation.costs import Costs
from bench.simulation.devices import DEVICES
from bench.simulation.shapes import SHAPES
from beside_prompts import Row, main, row, seen, systems

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


def test_prompts_as_long_as_those_of_streams_are_told_from_them() -> None:
    """
    By when they arrived, not by what they are.
    """
    both = seen(H200["fused 512"], replace(MIX, of_prompts=MIX.of_streams))

    assert len(both.prompts) == 20
    assert len(both.streams) == 78


def test_each_system_is_told_of_each_device(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """
    By the load that was asked for; one without prompts is refused.
    """
    argv = ["beside", "--devices", "h200", "a100-80g", "--seconds", "5"]
    monkeypatch.setattr(sys, "argv", [*argv, "--json"])
    main()
    told = json.loads(capsys.readouterr().out)

    monkeypatch.setattr(sys, "argv", argv)
    main()
    table = capsys.readouterr().out

    monkeypatch.setattr(sys, "argv", [*argv, "--rate", "0.1"])
    with pytest.raises(SystemExit, match="no prompt arrives"):
        main()

    assert [each["device"] for each in told] == 4 * ["h200"] + 4 * ["a100-80g"]
    assert all(each["itl_p99"] >= each["itl_p50"] > 0 for each in told)
    assert "6 streams/s" in table
