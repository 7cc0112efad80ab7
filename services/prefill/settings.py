"""What a prefill worker is told at its start."""

from typing import Literal

from pydantic import Field

from worker.settings import WorkerSettings


class Settings(WorkerSettings):
    phases: Literal["prefill", "decode", "both"] = "prefill"
    max_num_seqs: int = Field(default=8, ge=1, le=4096)
