"""The comparison of servers: how each is run, and what its report says."""

import socket
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from running import DEMO

import compare

TTFT, TPOT, *_ = compare.LOADS
# Prints the seed and the load's number of tokens, as `tandem bench` prints figures.
PROGRAM = f"""
import json, sys
if sys.argv[1] == "install": sys.exit()
at = lambda option: float(sys.argv[sys.argv.index(option) + 1])
found = {{"median": 100 * at("--seed") + at("--output")}}
figures = dict.fromkeys(({TTFT.figure!r}, {TPOT.figure!r}), found)
print(json.dumps({{"runs": [], "figures": figures}}))
"""


def figures_of(**servers: dict[str, list[float]]) -> compare.Figures:
    """Of each load that is not named there are none."""
    nothing: dict[str, list[float]] = {load.title: [] for load in compare.LOADS}
    return {name: nothing | loads for name, loads in servers.items()}


@pytest.fixture
def figures() -> compare.Figures:
    """Two servers, one of which did not get through its second load."""
    mine = {TTFT.title: [81.0, 79.0, 80.0], TPOT.title: [5.0, 4.0, 6.0]}
    return figures_of(tandem=mine, other={TTFT.title: [90.0, 100.0, 200.0]})


def engine(
    name: str, folder: Path, program: str, *loads: compare.Load
) -> compare.Server:
    """One that is measured in process."""
    path = folder / name
    path.write_text(f"#!{sys.executable}\n{program}")
    path.chmod(0o755)
    argv = [str(path), "measure"]
    return compare.Server(name, argv, {}, 0, loads=loads or compare.LOADS)


def test_a_ratio_is_the_middle_one_of_the_rounds(figures: compare.Figures) -> None:
    """
    Ours by the peer's, each of the same round. Less than one is faster where a figure is
    a time; what failed has no ratio.
    """
    assert compare.ratio(TTFT, figures, "tandem", "other") == "0.79"
    assert compare.ratio(TPOT, figures, "tandem", "other") == ""


def test_report_shows_spread_failure_and_ratios(figures: compare.Figures) -> None:
    """
    Each figure has its least and most, and of a load that failed there is none.
    """
    lines = compare.as_markdown(figures, "llama-120m").splitlines()

    assert any("80.0 (79.0 to 81.0)" in line for line in lines)
    assert any(
        line.startswith("| other |") and "not measured" in line for line in lines
    )
    assert any(line.startswith("| other | 0.79 |") for line in lines)


def test_report_tells_an_engine_from_servers(figures: compare.Figures) -> None:
    """
    What is measured in process says so wherever it is named, and has its ratios.
    """
    figures |= figures_of(openvino={TTFT.title: [40.5, 39.5, 40.0]})

    lines = compare.as_markdown(figures, "llama-120m").splitlines()

    named = [line for line in lines if "openvino" in line]
    assert all("openvino (in process, no HTTP)" in line for line in named)
    assert any("| 2.00 |" in line for line in named)


def test_each_peer_has_a_home_a_port_and_the_same_model(tmp_path: Path) -> None:
    """
    Peers are scripts that are told where to live, what to serve and on which port.
    """
    names = ["tandem-fused", "vllm"]
    ours, peer = compare.servers(names, tmp_path, Path("/model"))

    assert peer.env["MODEL"] == "/model"
    assert peer.env["PORT"] == str(peer.port) != str(ours.port)
    assert Path(peer.env["PEER_HOME"]) == tmp_path / "vllm"
    assert Path(peer.argv[0]).is_file()
    assert "/model" in ours.argv
    assert "fused" in ours.argv


def test_an_engine_without_a_server_measures_itself(tmp_path: Path) -> None:
    """
    Nothing is started for it: its script gets the load that servers are asked with.
    """
    (peer,) = compare.servers(["openvino"], tmp_path, Path("/model"))

    with compare.measuring(peer, tmp_path / "log") as argv:
        pass

    assert argv == [str(compare.HERE / "peers" / "openvino"), "measure"]
    assert not (tmp_path / "log").exists()


def test_the_floor_is_of_one_stream(tmp_path: Path) -> None:
    """
    What the machine must read and multiply for one request says nothing of many at once.
    """
    (floor,) = compare.servers([compare.FLOOR], tmp_path, DEMO)

    found = [compare.measured(floor, floor.argv, load, 0) for load in floor.loads]

    assert list(floor.loads) == [TTFT, TPOT]
    assert all(milliseconds > 0 for milliseconds in found)


def test_servers_take_turns(tmp_path: Path) -> None:
    """
    In each round each is asked every load that it can be asked, with prompts of that
    round's. Who looks between two finds what was measured.
    """
    asked = [
        engine("openvino", tmp_path, PROGRAM),
        engine("floor", tmp_path, PROGRAM, TPOT),
    ]
    figures: compare.Figures = {}

    seen = [
        sum(len(each) for loads in figures.values() for each in loads.values())
        for _ in compare.rounds(asked, [TTFT, TPOT], 2, tmp_path, figures)
    ]

    assert seen == [1, 2, 3, 4, 5, 6]
    assert figures["openvino"][TTFT.title] == [2.0, 102.0]
    assert figures["floor"] == figures_of(floor={TPOT.title: [128.0, 228.0]})["floor"]


def test_who_fails_takes_nothing_away(tmp_path: Path) -> None:
    """
    From others or from what it was measured before; it is asked no more.
    """
    fails = f"import sys\nif '{TPOT.num_output}' in sys.argv: sys.exit(1)\n"
    asked = [
        engine("openvino", tmp_path, fails + PROGRAM),
        engine("floor", tmp_path, PROGRAM),
    ]
    figures: compare.Figures = {}

    list(compare.rounds(asked, [TTFT, TPOT], 2, tmp_path, figures))

    assert figures["openvino"] == figures_of(openvino={TTFT.title: [2.0]})["openvino"]
    assert figures["floor"][TPOT.title] == [128.0, 228.0]


def test_a_server_that_ends_is_not_waited_for(tmp_path: Path) -> None:
    """
    Who ends instead of starting is an error at once, and not after the limit.
    """
    server = compare.Server("broken", ["/bin/false"], {}, 9)

    with (
        pytest.raises(RuntimeError, match="exit code 1"),
        compare.running(server, tmp_path / "log"),
    ):
        pass


def test_free_ports_are_free() -> None:
    """
    Somebody can listen at each, at the same time.
    """
    with ExitStack() as stack:
        for port in compare.free_ports(3):
            stack.enter_context(socket.create_server(("127.0.0.1", port)))


def test_results_of_the_same_day_stay(tmp_path: Path) -> None:
    """
    A second run is written beside the first one, and a third beside both.
    """
    path = tmp_path / "results.md"
    names = []
    for _ in range(3):
        compare.unwritten(path).write_text("")
        names = sorted(each.name for each in tmp_path.iterdir())

    assert names == ["results-2.md", "results-3.md", "results.md"]
