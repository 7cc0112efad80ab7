"""The gateway's controller on two simulated cores, where no split is much better than none.

Whole steps take turns under (100, 100); a split halves what both phases have. Device, loads
and SLOs are those of `make bench-controller`.
"""

import pytest

from controller import LOADS, Changing, as_markdown, design, mean_of, shifting

BY_NAME = {load.name: load for load in LOADS}


@pytest.mark.parametrize(
    ("name", "window_seconds"),
    [
        ("mixed, 5.5/s", 5.0),  # at its limit
        ("mixed, 6.5/s", 1.0),  # beyond it
        ("mixed, 6.5/s, 3/s, 6.5/s", 5.0),
        ("phases of 12 s, 3.5/s", 1.0),
        ("phases of 1 s, 5/s", 1.0),
        ("phases of 2 s, 5/s", 5.0),
    ],
)
def test_it_does_no_worse_than_no_split(name: str, window_seconds: float) -> None:
    """
    Whether the load is steady, steps, or alternates slower or faster than windows; and
    nothing swings.
    """
    ours = mean_of(design(window_seconds=window_seconds), BY_NAME[name])
    whole = mean_of(design(), BY_NAME[name])

    assert ours.attainment >= whole.attainment - 0.02
    assert ours.changes <= 1.5


def test_the_table_says_what_it_did() -> None:
    """
    Beside the attainment, changes per minute and the part of the time in a split.
    """
    load = Changing("one", lambda seed: shifting(30.0, 1.0, seed)[:40])
    found = {"one": {"ours": mean_of(design(window_seconds=1.0), load)}}
    quiet, busy = found["one"]["ours"], found["one"]["ours"]._replace(changes=2.0)

    table = as_markdown({"one": {"quiet": quiet._replace(changes=0), "busy": busy}})

    assert table.splitlines()[0] == "| | quiet | busy |"
    assert table.splitlines()[2].count("(2.0, ") == 1
