"""What a worker is told at its start; its phases are the only difference of kinds."""

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from mesh.settings import PREFIX, ServiceSettings
from protocol.memory import DType, Quantization


class WorkerSettings(ServiceSettings):
    store_socket: Path = Path("/run/tandem/kvstore.sock")
    model: str = "models/demo"  # a directory or a hub id
    dtype: DType = "float32"
    quantization: Quantization = "none"
    engine: Literal["transformer", "counting"] = "transformer"
    phases: Literal["prefill", "decode", "both"] = "both"
    threads: int = Field(default=0, ge=0, le=1024)  # at most; 0: all its cores
    max_num_seqs: int = Field(default=64, ge=1, le=4096)
    max_num_batched_tokens: int = Field(default=512, ge=1)
    load_timeout_seconds: float = Field(default=1800.0, gt=0)

    @field_validator("quantization")
    @classmethod
    def _fits_dtype(cls, quantization: Quantization, info: ValidationInfo) -> str:
        if quantization == "int8" and info.data.get("dtype") != "bfloat16":
            raise ValueError(f"int8 needs {PREFIX}DTYPE=bfloat16; float32 is exact")
        return quantization
