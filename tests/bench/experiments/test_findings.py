"""What was found, as JSON, as a table and as a picture."""

from pathlib import Path

import pytest
from found import at, findings, system
from rich.console import Console

from bench.experiments.findings import Findings, as_table
from bench.experiments.picture import draw

FOUND = findings(
    system("fused", at(2.0, 1.0), at(4.0, 0.95), at(8.0, 0.4)),
    system("semi-dynamic", at(4.0, 0.97), at(8.0, 0.92), at(16.0, 0.1)),
    system("broken", at(4.0, 0.0)),
    reference=4.0,
)


def test_findings_are_read_as_they_were_written() -> None:
    """
    An experiment that is gone on with has what it had.
    """
    assert Findings.model_validate_json(FOUND.model_dump_json()) == FOUND


def test_the_highest_rate_is_one_that_held() -> None:
    """
    Of those asked; none, if none held.
    """
    assert [each.highest for each in FOUND.systems] == [4.0, 8.0, None]


def test_the_table_compares_with_the_first_system() -> None:
    """
    Highest rates by its own, and everyone at the reference rate.
    """
    console = Console(width=200)
    with console.capture() as capture:
        console.print(as_table(FOUND))

    rows = {
        line.split("│")[1].strip(): line for line in capture.get().splitlines()[4:-1]
    }

    assert "4/s" in rows["fused"]
    assert "1.00" in rows["fused"]
    assert "8/s" in rows["semi-dynamic"]
    assert "2.00" in rows["semi-dynamic"]
    assert "0.970" in rows["semi-dynamic"]
    assert "none" in rows["broken"]


@pytest.mark.parametrize("reference", [4.0, None])
def test_a_picture_is_drawn(tmp_path: Path, reference: float | None) -> None:
    """
    Also of systems that answered nothing, and of peers, which tell nothing of memory.
    """
    path = tmp_path / "found.png"

    draw(FOUND.model_copy(update={"reference": reference}), path)

    assert path.read_bytes().startswith(b"\x89PNG")
