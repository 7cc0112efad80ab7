"""What a worker is told at its start; its phases are the only difference of kinds."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_settings import NoDecode

from mesh.settings import PREFIX, ServiceSettings
from protocol.memory import Device, DType, Quantization
from protocol.messages import Phase

# Each is a stream and a set of CUDA graphs, which take time at the start and memory.
FEW_SPLITS = (30, 50, 70)
STEP_TOKENS = 512
STEP_TOKENS_OF_PROMPTS_ON_GPU = 8192
Percent = Annotated[int, Field(ge=1, le=99)]
Ladder = Annotated[tuple[Percent, ...], NoDecode]


class WorkerSettings(ServiceSettings):
    store_socket: Path = Path("/run/tandem/kvstore.sock")
    stem_socket: Path | None = None  # of who forks loaders and compilers
    model: str = "models/demo"  # a directory or a hub id
    dtype: DType = "float32"
    device: Device = "cpu"
    quantization: Quantization = "none"
    compression: bool = True  # of bfloat16 weights on the CPU; to the bit the same
    engine: Literal["transformer", "counting"] = "transformer"
    phases: Literal["prefill", "decode", "both"] = "both"
    shares: int = Field(default=0, ge=0, lt=100)  # percent of a GPU for prefill; 0: all
    share_ladder: Ladder = ()  # of a GPU: the shares that can be changed to
    require_zero_copy: bool = False  # and the split that was asked for, or no start
    threads: int = Field(default=0, ge=0, le=1024)  # at most; 0: all its cores
    max_num_seqs: int = Field(default=64, ge=1, le=4096)
    max_num_batched_tokens: int = Field(default=0, ge=0)  # 0: `step_tokens`
    max_private_bytes: int = Field(default=1 << 30, ge=0)  # of weights laid out anew
    load_timeout_seconds: float = Field(default=1800.0, gt=0)

    @property
    def each_phase(self) -> tuple[Phase, ...]:
        """What it computes."""
        return ("prefill", "decode") if self.phases == "both" else (self.phases,)

    @property
    def step_tokens(self) -> int:
        """Tokens in a step. Beside nobody's decoding a GPU takes whole prompts: short steps
        would leave parts of it idle at the end of each product.
        """
        alone = self.device == "cuda" and self.phases == "prefill"
        suits = STEP_TOKENS_OF_PROMPTS_ON_GPU if alone else STEP_TOKENS
        return self.max_num_batched_tokens or suits

    @property
    def asks_for_split(self) -> bool:
        return bool(self.shares or self.share_ladder)

    @property
    def splits(self) -> list[int]:
        """Percents for prefill that a GPU can be divided by, where that is asked for."""
        first = {self.shares} if self.shares else set()
        return sorted(first.union(self.share_ladder or FEW_SPLITS))

    @field_validator("share_ladder", mode="before")
    @classmethod
    def _listed(cls, ladder: object) -> object:
        return ladder.split(",") if isinstance(ladder, str) and ladder else ladder or ()

    @field_validator("quantization")
    @classmethod
    def _fits(cls, quantization: Quantization, info: ValidationInfo) -> Quantization:
        asked = info.data.get("dtype"), info.data.get("device")
        if quantization == "int8" and asked != ("bfloat16", "cpu"):
            names = f"{PREFIX}DTYPE=bfloat16 and {PREFIX}DEVICE=cpu"
            raise ValueError(f"int8 needs {names}")
        return quantization
