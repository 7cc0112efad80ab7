"""The same requests in the same pattern, at any rate."""

import json
from itertools import pairwise
from pathlib import Path

import pytest

from bench.experiments.loads import NUM_PHASES, Drawn, Recorded
from bench.workload import Planned, Scaling

MIXED, SHIFTING = Drawn(False, 1000), Drawn(True, 1000)


def lengths(planned: list[Planned]) -> list[tuple[int, int]]:
    return [(len(each.prompt), each.max_tokens) for each in planned]


def test_a_rate_changes_nothing_but_times_and_tokens() -> None:
    """
    The n-th request is the same draw, sooner; and a prefix cache does not know it.
    """
    slow, fast = MIXED.requests(2.0, 30.0, 7), MIXED.requests(4.0, 30.0, 7)

    assert len(slow) < len(fast)
    assert lengths(slow) == lengths(fast)[: len(slow)]
    assert [each.at for each in slow] == pytest.approx(
        [2 * each.at for each in fast[: len(slow)]]
    )
    assert all(
        one.prompt[:16] != two.prompt[:16] for one, two in zip(slow, fast, strict=False)
    )
    assert MIXED.requests(2.0, 30.0, 7) == slow
    assert lengths(MIXED.requests(2.0, 30.0, 8)) != lengths(slow)


def test_as_many_arrive_as_the_rate_says() -> None:
    """
    On average, all within the time.
    """
    planned = MIXED.requests(20.0, 50.0, 0)

    assert len(planned) == pytest.approx(1000, rel=0.1)
    assert all(0 < each.at < 50.0 for each in planned)


def test_long_prompts_and_long_answers_are_mixed() -> None:
    """
    Half of each, in any order.
    """
    planned = MIXED.requests(20.0, 50.0, 0)
    is_prompt = [len(each.prompt) > 5 * each.max_tokens for each in planned]

    assert is_prompt.count(True) == pytest.approx(len(planned) / 2, rel=0.15)
    assert len({*pairwise(is_prompt)}) == 4


def test_phases_follow_one_another() -> None:
    """
    Prompts alone, answers alone, and again, whatever the rate.
    """
    for rate in (5.0, 20.0):
        planned = SHIFTING.requests(rate, 40.0, 0)
        for each in planned:
            phase = int(NUM_PHASES * each.at / 40.0)
            assert (len(each.prompt) > 5 * each.max_tokens) == (phase % 2 == 0)


def test_a_trace_keeps_its_pattern(tmp_path: Path) -> None:
    """
    So many requests as the rate has in that time, stretched to it.
    """
    path = tmp_path / "trace.jsonl"
    rows = [
        {
            "timestamp": 1000 * at,
            "input_length": 10,
            "output_length": 2,
            "hash_ids": [at],
        }
        for at in (0, 1, 2, 10, 11, 12, 20)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))

    planned = Recorded(path, 1000, Scaling()).requests(2.0, 3.0, 0)

    times = [each.at for each in planned]
    assert times == pytest.approx([each * 3.0 / 12 for each in (0, 1, 2, 10, 11, 12)])
