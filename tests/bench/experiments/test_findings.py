"""What was found, as JSON, as a table and as a picture."""

from pathlib import Path

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

    rows = [
        [cell.strip() for cell in line.split("│")[1:-1]]
        for line in capture.get().splitlines()
        if line.startswith("│")
    ]

    assert rows[:3] == [
        ["highest rate, requests/s", "4", "8", "-"],
        ["by fused", "1.00", "2.00", "-"],
        ["at 4/s: attainment", "0.950", "0.970", "0.000"],
    ]
    assert ["at 4/s: TTFT P90, ms", "-", "-", "-"] not in rows
    assert rows[-1][-1] == "-"


def test_a_picture_is_drawn(tmp_path: Path) -> None:
    """
    Also of systems that answered nothing, and of peers, which tell nothing of memory.
    """
    path = tmp_path / "found.png"

    draw(FOUND, path)

    assert path.read_bytes().startswith(b"\x89PNG")
