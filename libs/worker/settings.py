"""What a worker is told at its start; its phases are the only difference of kinds."""

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from mesh.settings import PREFIX, ServiceSettings
from protocol.memory import Device, DType, Quantization


class WorkerSettings(ServiceSettings):
    store_socket: Path = Path("/run/tandem/kvstore.sock")
    model: str = "models/demo"  # a directory or a hub id
    dtype: DType = "float32"
    device: Device = "cpu"
    quantization: Quantization = "none"
    engine: Literal["transformer", "counting"] = "transformer"
    phases: Literal["prefill", "decode", "both"] = "both"
    shares: int = Field(default=0, ge=0, lt=100)  # percent of a GPU for prefill; 0: all
    threads: int = Field(default=0, ge=0, le=1024)  # at most; 0: all its cores
    max_num_seqs: int = Field(default=64, ge=1, le=4096)
    max_num_batched_tokens: int = Field(default=512, ge=1)
    load_timeout_seconds: float = Field(default=1800.0, gt=0)

    @field_validator("quantization")
    @classmethod
    def _fits(cls, quantization: Quantization, info: ValidationInfo) -> Quantization:
        asked = info.data.get("dtype"), info.data.get("device")
        if quantization == "int8" and asked != ("bfloat16", "cpu"):
            names = f"{PREFIX}DTYPE=bfloat16 and {PREFIX}DEVICE=cpu"
            raise ValueError(f"int8 needs {names}")
        return quantization
