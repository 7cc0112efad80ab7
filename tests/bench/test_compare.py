"""The comparison of servers: how each is run, and what its report says."""

import socket
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
    assert any(line.startswith("| other |") and "not measured" in line for line in lines)
    assert any(line.startswith("| other | 0.80 |") for line in lines)


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
