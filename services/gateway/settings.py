"""What the gateway is told at its start."""

import math
from typing import Literal

from pydantic import Field

from gateway.windows import Goals
from mesh.settings import ServiceSettings

NAME = r"[A-Za-z0-9_.-]{1,64}"


class Settings(ServiceSettings):
    # To which requests go, by commas; empty: the one of `pool`.
    pools: str = Field(default="", pattern=rf"^({NAME}(,{NAME})*)?$")
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    listen_fd: int = Field(default=0, ge=0)  # a bound socket to serve instead, or 0
    model: str = "models/demo"
    served_model_name: str = ""  # empty: the model's own name
    chat_template: str = ""  # a jinja file; empty: the tokenizer's own
    max_open_requests: int = Field(default=1024, ge=1)
    request_timeout_seconds: float = Field(default=600.0, gt=0)
    body_timeout_seconds: float = Field(default=10.0, gt=0)
    keepalive_seconds: float = Field(default=30.0, gt=0)
    max_body_bytes: int = Field(default=4 << 20, ge=1024)
    max_connections: int = Field(default=2048, ge=1)
    slo_ttft_seconds: float = Field(default=0.0, ge=0)  # 0: none
    slo_tpot_seconds: float = Field(default=0.0, ge=0)  # 0: none
    slo_percentile: int = Field(default=90, ge=1, le=100)  # at which they shall hold
    controller: Literal["on", "off"] = "on"  # with an SLO: shares follow it
    control_window_seconds: float = Field(default=5.0, gt=0)

    @property
    def pool_names(self) -> list[str]:
        """Each once."""
        return list(dict.fromkeys((self.pools or self.pool).split(",")))

    @property
    def goals(self) -> Goals:
        return Goals(
            self.slo_ttft_seconds or math.inf,
            self.slo_tpot_seconds or math.inf,
            self.slo_percentile,
        )

    @property
    def steers(self) -> bool:
        has_slo = bool(self.slo_ttft_seconds or self.slo_tpot_seconds)
        return has_slo and self.controller == "on"
