"""The gateway's controller on two simulated cores, where no split is better than none.

Whole steps take turns under (100, 100); a split halves what both phases have. The device
is one that was calibrated (bench/results/2026-11-27-simulator.md).
"""

import json
from statistics import fmean

import pytest

from bench.experiments.loads import Drawn
from bench.measures import SLO
from bench.simulation.costs import Costs
from bench.simulation.design import Design
from bench.simulation.devices import Device
from bench.simulation.fleet import attainment
from bench.simulation.pool import Pool, open_loop
from bench.simulation.shapes import Shape
from models import SHAPES
from semi_pd import RESULTS, Ours

MODEL = SHAPES["llama-120m"]
SHAPE = Shape(
    num_layers=MODEL.num_hidden_layers,
    hidden_size=MODEL.hidden_size,
    intermediate_size=MODEL.intermediate_size,
    num_heads=MODEL.num_attention_heads,
    num_kv_heads=MODEL.num_key_value_heads,
    head_dim=MODEL.hidden_size // MODEL.num_attention_heads,
    vocab_size=MODEL.vocab_size,
)
FOUND = json.loads((RESULTS / "2026-11-27-simulator.json").read_text())
CORES = Device.model_validate(
    FOUND["llama-120m, semi"]["device"] | {"num_cores": 2}
)
SLOS = SLO(ttft=0.86, tpot=0.081)
WHOLE = Design("semi", Costs(SHAPE, CORES), max_tokens=32_768)


def held(load: Drawn, rate: float, seconds: float, window_seconds: float) -> float:
    """Attainment under the controller, over six traces; 0 for none: (100, 100)."""
    design = WHOLE
    if window_seconds:
        design = Design(
            "semi",
            WHOLE.costs,
            max_tokens=WHOLE.max_tokens,
            controller=lambda: Ours(SLOS),
            window_seconds=window_seconds,
        )
    return fmean(
        attainment(open_loop([Pool(design)], load.requests(rate, seconds, seed)), SLOS)
        for seed in range(6)
    )


@pytest.mark.parametrize(
    ("is_shifting", "rate", "window_seconds"),
    [
        (False, 4.5, 2.0),
        (False, 5.5, 2.0),
        (False, 6.5, 2.0),
        (True, 3.5, 1.0),
        (True, 3.5, 10.0),
    ],
    ids=["light", "near its limit", "beyond it", "shifting slowly", "shifting fast"],
)
def test_it_does_no_worse_than_no_split(
    is_shifting: bool, rate: float, window_seconds: float
) -> None:
    """
    Below the limit, at it and beyond it; phases of 15 s are slow for windows of one
    second, and fast for those of ten.
    """
    load = Drawn(is_shifting, vocab_size=1000)

    ours = held(load, rate, 60.0, window_seconds)

    assert ours >= held(load, rate, 60.0, 0) - 0.03
