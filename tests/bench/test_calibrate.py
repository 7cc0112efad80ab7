"""Calibration on the real mesh: its loads, and what it says of them."""

import pytest
from rich.console import Console

from bench.measures import Outcome
from bench.simulation.calibration import Load, mean_of, predicted
from calibrate import (
    FITTED,
    GUESS,
    Seen,
    as_table,
    calibrating,
    checking,
    design_of,
    figures,
    in_rounds,
    with_prompts,
)

SEMI = design_of("llama-120m", "semi")


def test_the_mesh_is_compared_on_loads_that_nothing_was_fitted_to() -> None:
    """
    Three of them, with lengths and times of their own; a scale changes only rates.
    """
    fitted, compared = calibrating(1.0), checking(1.0)

    assert len(compared) == 3
    assert not {load.name for load in fitted} & {load.name for load in compared}
    for slow, fast in zip(compared, checking(2.0), strict=True):
        assert [each.at for each in slow.planned[:5]] != [0.0] * 5
        assert slow.planned[-1].at > 1.5 * fast.planned[-1].at


def test_a_mesh_that_does_what_was_predicted_has_no_error() -> None:
    """
    In each load, of TTFT and TPOT; answers of one token have no TPOT.
    """
    loads = [*calibrating(1.0), *checking(1.0)]
    seen = [Seen(load, predicted(SEMI, load)) for load in loads]

    rows = figures(SEMI, seen, Seen.means)

    assert all(row["ttft_error"] == 0 for row in rows)
    assert "tpot_error" not in rows[0]
    assert rows[-1]["tpot_error"] == 0
    console = Console(record=True, width=150)
    console.print(as_table(rows, "as predicted"))
    assert "+0 %" in console.export_text()


@pytest.mark.parametrize("paradigm", ["semi", "fused"])
def test_a_paradigm_is_simulated_as_the_mesh_runs_it(paradigm: str) -> None:
    """
    Halves of the cores for semi's phases, as `tandem up` starts them; all that is fitted
    are figures of the device.
    """
    design = design_of("llama-120m", paradigm)

    assert design.kind == paradigm
    assert design.shares == (50, 50)
    assert design.costs.device == GUESS
    assert set(FITTED) <= set(type(GUESS).model_fields)


async def test_loads_are_measured_in_turn_round_by_round() -> None:
    """
    The machine that was slow for a minute was so for all loads, and what a load is said
    to take is of all its rounds.
    """
    asked = []

    async def ask(load: Load) -> list[Outcome]:
        asked.append(load.name)
        return predicted(SEMI, load)

    first, second = checking(1.0)[:2]
    outcomes = await in_rounds(ask, [first, second], 3)

    assert asked == 3 * [first.name, second.name]
    assert [len(each) for each in outcomes] == [3 * 24, 3 * 24]
    assert outcomes[0] == 3 * predicted(SEMI, first)


def test_a_round_that_was_disturbed_is_outvoted() -> None:
    """
    What is compared is the mean of a round, and of rounds the one in the middle.
    """
    load, other = checking(1.0)[:2]
    quick, slow = predicted(SEMI, load), predicted(SEMI, other)[: len(load.planned)]

    seen = Seen(load, [*quick, *slow, *quick])

    assert mean_of(slow).ttft > 1.5 * mean_of(quick).ttft
    assert seen.means() == mean_of(quick)


def test_no_prompt_is_asked_twice() -> None:
    """
    Rounds differ in the tokens alone, which a cache of prefixes would know.
    """
    load = checking(1.0)[0]

    one, other = with_prompts(load, 0), with_prompts(load, 1)

    prompts = {each.prompt[:32] for each in (*one.planned, *other.planned)}
    assert len(prompts) == 2 * len(load.planned)
    for asked, planned in zip(one.planned, load.planned, strict=True):
        assert len(asked.prompt) == len(planned.prompt)
        assert (asked.at, asked.max_tokens) == (planned.at, planned.max_tokens)
