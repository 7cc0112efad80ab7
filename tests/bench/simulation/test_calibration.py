"""Calibration: figures of a device out of what its loads took."""

import pytest
from simulating import DEVICE, design

from bench.measures import Outcome
from bench.simulation.calibration import (
    Load,
    Times,
    error,
    fitted,
    mean_of,
    middle_of,
    on,
    predicted,
)
from bench.simulation.control import Shares
from bench.simulation.loads import Lengths

FIGURES = ("peak_flops", "peak_bytes", "request_seconds")
REAL = design("semi", shares=Shares(50, 50))
LOADS = [
    *(Load("prompts", Lengths(n, 1).planned(3, n), num_clients=1) for n in (50, 400)),
    *(Load("streams", Lengths(20, 30).planned(n, n), num_clients=n) for n in (1, 8)),
]


def guess() -> dict[str, float]:
    """Wrong by factors of 2 to 4."""
    factors = (0.25, 3.0, 0.5)
    return {
        name: factor * getattr(DEVICE, name)
        for name, factor in zip(FIGURES, factors, strict=True)
    }


def test_the_device_behind_the_measurements_is_found() -> None:
    """
    From loads that a known device took, starting far from it; what it then predicts of a
    load that it has not seen is right.
    """
    seen = [(load, middle_of(predicted(REAL, load))) for load in LOADS]

    found = fitted(
        DEVICE.model_copy(update=guess()),
        FIGURES,
        lambda device: error(on(REAL, device), seen),
    )

    assert found.peak_flops == pytest.approx(DEVICE.peak_flops, rel=0.1)
    assert found.peak_bytes == pytest.approx(DEVICE.peak_bytes, rel=0.1)
    unseen = Load("both", Lengths(100, 20).planned(20, "unseen"), num_clients=4)
    ours, real = (mean_of(predicted(on(REAL, d), unseen)) for d in (found, DEVICE))
    assert ours.ttft == pytest.approx(real.ttft, rel=0.1)
    assert ours.tpot == pytest.approx(real.tpot, rel=0.1)


def test_errors_count_twice_and_half_alike() -> None:
    """
    They are logarithms; answers of one token have no TPOT to be wrong in.
    """
    real = Times(1.0, 0.1)

    assert Times(2.0, 0.1).errors(real) == pytest.approx([0.6931, 0.0], abs=1e-4)
    assert Times(0.5, 0.1).errors(real) == pytest.approx([-0.6931, 0.0], abs=1e-4)
    assert Times(1.0, None).errors(real) == [0.0]


def test_a_hiccup_moves_the_mean_and_not_the_middle() -> None:
    """
    One of five prompts took ten times as long.
    """
    outcomes = [
        Outcome(0.0, (ttft,), num_prompt_tokens=9, num_output_tokens=1)
        for ttft in (1.0, 1.0, 10.0, 1.0, 1.0)
    ]

    assert mean_of(outcomes) == Times(2.8, None)
    assert middle_of(outcomes) == Times(1.0, None)


def test_only_the_figures_asked_for_change() -> None:
    """
    The others stay what is known of the device.
    """
    found = fitted(
        DEVICE, ("step_seconds",), lambda device: abs(device.step_seconds - 0.005)
    )

    assert found.step_seconds == pytest.approx(0.005, rel=0.02)
    assert found.model_copy(update={"step_seconds": DEVICE.step_seconds}) == DEVICE
    assert on(REAL, found).costs.device == found
