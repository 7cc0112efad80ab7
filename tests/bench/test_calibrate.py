"""Calibration on the real mesh: its loads, and what it says of them."""

import pytest
from rich.console import Console

from bench.simulation.calibration import mean_of, predicted
from calibrate import (
    FITTED,
    GUESS,
    Seen,
    as_table,
    calibrating,
    checking,
    design_of,
    figures,
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

    rows = figures(SEMI, seen, mean_of)

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
