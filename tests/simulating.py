"""What tests of the simulator share: a small model on a device of round figures."""

from collections.abc import Sequence
from typing import Any

from bench.simulation.control import Shares, Window
from bench.simulation.costs import Costs
from bench.simulation.design import Design, Kind
from bench.simulation.devices import Device
from bench.simulation.shapes import Shape
from bench.workload import Planned

SHAPE = Shape(
    num_layers=2,
    hidden_size=64,
    intermediate_size=128,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    vocab_size=1000,
)
DEVICE = Device(
    name="round",
    peak_flops=1e9,
    peak_bytes=1e8,
    memory_bytes=1e8,
    compute_efficiency=1.0,
    memory_efficiency=1.0,
    compute_elasticity=1.0,
    memory_elasticity=0.5,
    contention=0.25,
    step_seconds=0.001,
    sequence_seconds=0.0001,
    handoff_seconds=0.002,
    request_seconds=0.004,
)
COSTS = Costs(SHAPE, DEVICE)
# So slow that a few requests per second fill it: less to simulate.
SLOW = Costs(
    SHAPE,
    DEVICE.model_copy(
        update={"peak_flops": 5e7, "peak_bytes": 1e7, "step_seconds": 0.005}
    ),
)


def design(kind: Kind, costs: Costs = COSTS, **changed: Any) -> Design:
    return Design(kind, costs, **changed)


def request(num_input: int, num_output: int, at: float = 0.0) -> Planned:
    return Planned((0,) * num_input, num_output, at)


class Constant:
    """A controller that always says the same, and remembers what it saw."""

    def __init__(self, shares: Shares, seen: list[Window]) -> None:
        self._shares = shares
        self._seen = seen

    def decide(self, window: Window) -> Shares:
        self._seen.append(window)
        return self._shares


def num_tokens(planned: Sequence[Planned]) -> int:
    """Of all answers."""
    return sum(each.max_tokens for each in planned)
