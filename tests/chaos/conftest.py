"""A mesh that is whole before each round, and how long its clients had to wait."""

from collections.abc import AsyncIterator
from statistics import median

import pytest
from running import RunningMesh
from storm import recoveries
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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The longest gap that a client saw, by what had happened."""
    for scenario, gaps in recoveries.items():
        terminalreporter.write_line(
            f"{scenario}: {len(gaps)} streams, longest gap {max(gaps):.2f} s, "
            f"median {median(gaps):.2f} s"
        )
