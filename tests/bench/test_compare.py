"""The comparison of servers: how each is run, and what its report says."""

import socket
import sys
from pathlib import Path

import pytest

import compare

TTFT, TPOT, *_ = compare.LOADS


def spread(median: float) -> dict[str, float]:
    return {"median": median, "least": median - 1, "most": median + 1}


@pytest.fixture
def figures() -> compare.Figures:
    """Two servers, one of which did not get through its second load."""
    return {
        "tandem": {TTFT.title: spread(80.0), TPOT.title: spread(5.0)},
        "other": {TTFT.title: spread(100.0)},
    }


def test_ratio_is_ours_by_the_peers(figures: compare.Figures) -> None:
    """
    Less than one is faster where a figure is a time; what failed has no ratio.
    """
    assert compare.ratio(TTFT, figures, "tandem", "other") == "0.80"
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
    assert any(line.startswith("| other | 0.80 |") for line in lines)


def test_report_tells_an_engine_from_servers(figures: compare.Figures) -> None:
    """
    What is measured in process says so wherever it is named, and has its ratios.
    """
    figures["openvino"] = {TTFT.title: spread(40.0)}

    lines = compare.as_markdown(figures, "llama-120m").splitlines()

    named = [line for line in lines if "openvino" in line]
    assert all("openvino (in process, no HTTP)" in line for line in named)
    assert any("| 2.00 |" in line for line in named)


def test_each_peer_has_a_home_and_the_same_model(tmp_path: Path) -> None:
    """
    Peers are scripts that are told where to live, what to serve and on which port.
    """
    names = ["tandem-fused", "vllm"]
    ours, peer = compare.servers(names, tmp_path, Path("/model"), 8123)

    assert peer.env["MODEL"] == "/model"
    assert peer.env["PORT"] == "8123"
    assert Path(peer.env["PEER_HOME"]) == tmp_path / "vllm"
    assert Path(peer.argv[0]).is_file()
    assert "/model" in ours.argv
    assert "fused" in ours.argv


def test_an_engine_without_a_server_measures_itself(tmp_path: Path) -> None:
    """
    Nothing is started for it: its script gets the load that servers are asked with.
    """
    (peer,) = compare.servers(["openvino"], tmp_path, Path("/model"), 8123)

    with compare.measuring(peer, 8123, tmp_path / "log") as argv:
        pass

    assert argv == [str(compare.HERE / "peers" / "openvino"), "measure"]
    assert not (tmp_path / "log").exists()


def test_the_figure_of_a_load_is_read_from_what_its_command_prints() -> None:
    """
    The command is told of the load and of the peer, and how often to repeat it.
    """
    peer = compare.Server("some", [], {"FIGURE": TTFT.figure})
    program = """
import json, os, sys
lengths = {"median": float(sys.argv[2]), "least": 0, "most": float(sys.argv[-1])}
print(json.dumps({"runs": [], "figures": {os.environ["FIGURE"]: lengths}}))
"""

    found = compare.measured(peer, [sys.executable, "-c", program], TTFT, 3)

    assert found == {"median": TTFT.num_input, "least": 0, "most": 3}


def test_a_server_that_ends_is_not_waited_for(tmp_path: Path) -> None:
    """
    Who ends instead of starting is an error at once, and not after the limit.
    """
    server = compare.Server("broken", ["/bin/false"], {})

    with (
        pytest.raises(RuntimeError, match="exit code 1"),
        compare.running(server, compare.free_port(), tmp_path / "log"),
    ):
        pass


def test_a_free_port_is_free() -> None:
    """
    Somebody can listen there.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", compare.free_port()))


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


def test_figures_are_there_before_the_next_load_is_measured(tmp_path: Path) -> None:
    """
    A comparison takes hours: who looks after each load finds what was measured, and what
    fails then takes nothing away.
    """
    program = tmp_path / "peer"
    program.write_text(f"""#!{sys.executable}
import json, sys
if "{TPOT.num_output}" in sys.argv:
    sys.exit(1)
print(json.dumps({{"runs": [], "figures": {{{TTFT.figure!r}: {spread(80.0)}}}}}))
""")
    program.chmod(0o755)
    peer = compare.Server("openvino", [str(program), "measure"], {})
    place = compare.free_port(), tmp_path / "log"
    figures: compare.Figures = {}

    measuring = compare.measurements(peer, [TTFT, TPOT], 1, place, figures)
    seen = [dict(figures["openvino"]) for _ in measuring]

    assert seen == [{TTFT.title: spread(80.0)}]
    assert figures["openvino"] == seen[0]
