"""What a decode worker is told at its start."""

from typing import Literal

from pydantic import Field

from worker.settings import WorkerSettings


class Settings(WorkerSettings):
    phases: Literal["prefill", "decode", "both"] = "decode"
    max_num_seqs: int = Field(default=64, ge=1, le=4096)
