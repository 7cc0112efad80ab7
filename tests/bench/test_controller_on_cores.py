"""The gateway's controller on two simulated cores: device, loads and SLOs of
`make bench-controller`.
"""

from functools import partial

import pytest

from controller import (
    Changing,
    as_markdown,
    demo,
    design,
    llama_120m,
    loads,
    mean_of,
    shifting,
)
from semi_pd import BEGINNING

LARGE, SMALL = llama_120m(), demo()
BY_NAME = {load.name: load for load in loads()}


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
    nothing swings. It takes looks to see that a part for streams is too much.
    """
    steered = design(LARGE, BEGINNING, window_seconds)
    ours = mean_of(LARGE, steered, BY_NAME[name])
    whole = mean_of(LARGE, design(LARGE), BY_NAME[name])

    assert ours.attainment >= whole.attainment - 0.02
    assert ours.changes <= 1.5


@pytest.mark.parametrize("rate", [4.5, 6.0])
def test_streams_with_a_part_of_their_own_hold_more(rate: float) -> None:
    """
    On the other machine a chunk of a prompt takes longer than TPOT's SLO, so at (100, 100)
    streams fail beside the prompts that arrive in phases.
    """
    load = Changing("", partial(shifting, 12.0, rate))

    ours = mean_of(SMALL, design(SMALL, BEGINNING, window_seconds=2.0), load)
    whole = mean_of(SMALL, design(SMALL), load)

    assert ours.attainment > 0.95 > 0.92 > whole.attainment


def test_the_table_says_what_it_did() -> None:
    """
    Beside the attainment, changes per minute and the part of the time in a split.
    """
    load = Changing("one", lambda seed: shifting(30.0, 1.0, seed)[:40])
    steered = design(LARGE, BEGINNING, window_seconds=1.0)
    found = {"one": {"ours": mean_of(LARGE, steered, load)}}
    quiet, busy = found["one"]["ours"], found["one"]["ours"]._replace(changes=2.0)

    table = as_markdown({"one": {"quiet": quiet._replace(changes=0), "busy": busy}})

    assert table.splitlines()[0] == "| | quiet | busy |"
    assert table.splitlines()[2].count("(2.0, ") == 1
