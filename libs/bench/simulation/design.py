"""What a pool is made of, of each of the three kinds."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from bench.simulation.control import EVERYTHING, Controller, Shares
from bench.simulation.costs import Costs
from bench.simulation.worker import Rules
from mesh.errors import ConfigurationError

Kind = Literal["semi", "fused", "disaggregated"]
KINDS: tuple[Kind, ...] = ("semi", "fused", "disaggregated")

# As `tandem up` starts them.
PREFILL = Rules(max_num_seqs=8)
DECODE = Rules(max_num_seqs=64)


@dataclass(frozen=True, slots=True)
class Design:
    """`costs` are those of each of its chips."""

    kind: Kind
    costs: Costs
    prefill: Rules = PREFILL  # fused has none
    decode: Rules = DECODE  # fused: of its only worker
    shares: Shares = EVERYTHING
    num_prefill: int = 1  # chips; of disaggregated alone
    num_decode: int = 1
    transfer_bytes: float = 25e9  # per second, of each prefill chip's link
    max_tokens: int = 0  # K and V in a chip's memory; 0: what the weights leave
    controller: Callable[[], Controller] | None = None  # of semi alone
    window_seconds: float = 10.0  # between its decisions

    def __post_init__(self) -> None:
        if not self.capacity:
            name = self.costs.device.name
            raise ConfigurationError(f"{name} has no room beside the weights")

    @property
    def num_chips(self) -> int:
        if self.kind == "disaggregated":
            return self.num_prefill + self.num_decode
        return 1

    @property
    def capacity(self) -> int:
        """Tokens that fit into one chip's memory."""
        return self.max_tokens or self.costs.max_tokens

    @property
    def token_seconds(self) -> float:
        """Of KV transfer."""
        return self.costs.shape.kv_bytes_per_token / self.transfer_bytes
