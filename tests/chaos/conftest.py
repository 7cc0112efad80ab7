"""A mesh that is whole before each round, and how long its clients had to wait."""

from collections.abc import AsyncIterator
from statistics import median

import pytest
from running import RunningMesh
from storm import pauses
from waiting import wait_until


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each scenario as often as `--rounds` says."""
    if "whole_mesh" in metafunc.fixturenames:
        rounds = metafunc.config.getoption("--rounds")
        if rounds > 1:
            metafunc.parametrize("round_number", range(rounds), indirect=True)


@pytest.fixture
def round_number(request: pytest.FixtureRequest) -> int:
    return int(getattr(request, "param", 0))


@pytest.fixture
async def whole_mesh(
    mesh: RunningMesh, round_number: int
) -> AsyncIterator[RunningMesh]:
    """All four workers are up before the round, and again before the next one."""
    await wait_until(mesh.is_whole, seconds=60)
    yield mesh
    await wait_until(mesh.is_whole, seconds=60)
    await wait_until(mesh.is_idle)
    assert not mesh.miscounts()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The longest pause that clients saw, by what had happened."""
    for scenario, seen in pauses.items():
        seconds, missed = zip(*seen, strict=True)
        terminalreporter.write_line(
            f"{scenario}: {len(seen)} streams, longest pause {max(seconds):.2f} s, "
            f"median {median(seconds):.2f} s; steps missed: "
            f"median {median(missed):.0f}, most {max(missed)}"
        )
