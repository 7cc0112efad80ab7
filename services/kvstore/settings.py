"""What the store is told at its start."""

from pathlib import Path

from pydantic import Field

from kv.cuda import Wanted
from kvstore.by_queue import WHOLE
from mesh.settings import ServiceSettings
from protocol.memory import Device
from protocol.messages import Shares

POOL_OR_NONE = r"^[A-Za-z0-9_.-]{0,64}$"


class Settings(ServiceSettings):
    store_socket: Path = Path("/run/tandem/kvstore.sock")
    device: Device = "cpu"  # whose memory
    cuda_sharing: Wanted = "auto"
    require_zero_copy: bool = False  # try that way at the start
    kv_blocks: int = Field(default=0, ge=0)  # 0: 2048, or what a GPU has left
    block_size: int = Field(default=16, ge=1, le=1024)  # tokens
    max_model_len: int = Field(
        default=0, ge=0
    )  # tokens; 0: what model and blocks allow
    handoff_pool: str = Field(default="", pattern=POOL_OR_NONE)  # decodes; empty: here
    transfer_host: str = "127.0.0.1"  # where stores of other pools find this one
    transfer_port: int = Field(default=0, ge=0, le=65535)  # 0: a free one
    check_seconds: float = Field(default=0, ge=0)  # between self-checks; 0: none
    max_waiting: int = Field(default=4096, ge=1)  # sequences that wait for blocks
    shares: int = Field(default=0, ge=0, lt=100)  # percent for prefill; 0: see below

    @property
    def first_shares(self) -> Shares | None:
        """Until others are ordered: as asked, else those of a whole GPU, and on a CPU
        none: there they follow the queue."""
        if self.shares:
            return Shares(prefill=self.shares, decode=100 - self.shares)
        return None if self.device == "cpu" else WHOLE
