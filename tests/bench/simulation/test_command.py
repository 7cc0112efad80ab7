"""`tandem simulate`: what it prints."""

import json
from pathlib import Path
from typing import Any

import pytest
from simulating import COSTS, SLOW, design

from bench.measures import SLO
from bench.simulation.command import Question, run
from bench.simulation.design import KINDS
from bench.simulation.loads import Lengths
from bench.workload import Scaling
from mesh.errors import ConfigurationError

DESIGNS = [design(kind) for kind in KINDS]
AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.0000000,37,4
2023-11-16 18:15:47.0000000,39,6
2023-11-16 18:15:49.0000000,90,8
"""


def question(**changed: Any) -> Question:
    asked: dict[str, Any] = {
        "lengths": Lengths(50, 10),
        "num_requests": 30,
        "rate": 20.0,
        "trace": None,
        "scaling": Scaling(),
        "seed": 0,
        "slo": SLO(ttft=0.2, tpot=0.05),
    }
    return Question(**(asked | changed))


def answers(
    capsys: pytest.CaptureFixture[str],
    asked: Question,
    num_pools: int = 1,
    plan_rate: float = 0.0,
) -> list[dict[str, Any]]:
    costs = SLOW if plan_rate else COSTS
    run(
        [design(kind, costs) for kind in KINDS],
        asked,
        num_pools=num_pools,
        plan_rate=plan_rate,
        as_json=True,
    )
    return list(json.loads(capsys.readouterr().out))


def test_each_kind_answers_the_same_load(capsys: pytest.CaptureFixture[str]) -> None:
    """
    With the measures of `tandem bench`, what the memory held, and what was refused.
    """
    found = answers(capsys, question())

    assert [each["kind"] for each in found] == list(KINDS)
    assert [each["chips"] for each in found] == [1, 1, 2]
    for each in found:
        assert each["run"]["num_requests"] == 30
        assert each["run"]["num_failed"] == each["preempted"] == 0
        assert each["run"]["ttft_ms"]["p50"] > 0
        assert 0 < each["attainment"] <= 1
    assert set(found[0]["kv_usage"]) == {"both"}
    assert set(found[2]["kv_usage"]) == {"prefill", "decode"}


def test_more_pools_share_the_load(capsys: pytest.CaptureFixture[str]) -> None:
    """
    All requests, in less time each.
    """
    (one, *_) = answers(capsys, question(rate=500.0))
    (four, *_) = answers(capsys, question(rate=500.0), num_pools=4)

    assert four["pools"] == four["chips"] == 4
    assert four["run"]["num_requests"] == 30
    assert four["run"]["e2e_ms"]["mean"] < one["run"]["e2e_ms"]["mean"]


def test_a_trace_is_replayed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """
    At its own times, or faster.
    """
    path = tmp_path / "azure.csv"
    path.write_text(AZURE)

    (own, *_) = answers(capsys, question(trace=path, rate=0.0))
    (fast, *_) = answers(capsys, question(trace=path, rate=100.0))

    assert own["run"]["num_prompt_tokens"] == 37 + 39 + 90
    assert own["run"]["seconds"] == pytest.approx(3.0, abs=0.3)
    assert fast["run"]["seconds"] < 0.5


def test_a_plan_takes_the_best_of_what_is_set_at_run_time(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """
    Shares of semi, chips of disaggregated; enough pools, and not one more.
    """
    asked = question(lengths=Lengths(300, 10), slo=SLO(ttft=10.0, tpot=0.5))

    found = answers(capsys, asked, plan_rate=20.0)

    for each in found:
        assert each["attainment"] >= 0.9
        assert (each["pools"] - 1) * each["capacity"] < 20
        assert each["pools"] * each["capacity"] >= 20
    assert found[0]["shares"] is not None
    prefill, decode = found[2]["chips_by_phase"]
    assert found[2]["chips"] == found[2]["pools"] * (prefill + decode)


def test_a_plan_without_limits_is_no_question() -> None:
    """
    Any pool serves any rate, if nobody minds how long it takes.
    """
    with pytest.raises(ConfigurationError, match="--ttft-slo"):
        run(DESIGNS, question(slo=SLO()), num_pools=1, plan_rate=5.0, as_json=True)


def test_a_plan_leaves_out_kinds_that_cannot_hold(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """
    KV transfer over a slow link makes every TPOT of disaggregated too long; limits that
    nobody meets are an error.
    """
    slow = [design(kind, SLOW, transfer_bytes=2e3) for kind in KINDS]
    asked = question(lengths=Lengths(300, 10), slo=SLO(ttft=10.0, tpot=0.5))

    run(slow, asked, num_pools=1, plan_rate=20.0, as_json=True)

    kinds = [each["kind"] for each in json.loads(capsys.readouterr().out)]
    assert kinds == ["semi", "fused"]
    with pytest.raises(ConfigurationError, match="even a single request"):
        answers(capsys, question(slo=SLO(ttft=0.001)), plan_rate=20.0)


def test_people_get_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    """
    A column for each kind of pool.
    """
    run(DESIGNS, question(), num_pools=1, plan_rate=0.0, as_json=False)

    shown = capsys.readouterr().out
    assert "semi 100/100" in shown
    assert "disaggregated 1P1D" in shown
    assert "met their SLOs" in shown
