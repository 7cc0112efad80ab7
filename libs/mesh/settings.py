"""Typed settings from TANDEM_* variables. Knows no service's own settings.

A misspelt variable is an exit that names it, never a silent default.
"""

import os
from typing import Literal, TypeVar

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from mesh.errors import ConfigurationError

PREFIX = "TANDEM_"


class ServiceSettings(BaseSettings):
    """What every service is told; each adds its own."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True)

    redis_url: str = "redis://127.0.0.1:6379"
    pool: str = Field(default="default", pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    log_format: Literal["auto", "json", "text"] = "auto"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    health_port: int = Field(default=0, ge=0, le=65535)  # 0: no health server
    lease_seconds: float = Field(default=2.0, gt=0)


S = TypeVar("S", bound=ServiceSettings)


def load(kind: type[S]) -> S:
    """Read the environment once; ConfigurationError names each wrong variable."""
    known = {f"{PREFIX}{name}".upper() for name in kind.model_fields}
    given = {name for name in os.environ if name.upper().startswith(PREFIX)}
    if unknown := sorted(given - known):
        raise ConfigurationError(f"unknown setting: {', '.join(unknown)}")
    try:
        return kind()
    except ValidationError as error:
        problems = error.errors(include_input=False, include_url=False)
        raise ConfigurationError("; ".join(map(_in_words, problems))) from None


def _in_words(problem: object) -> str:
    assert isinstance(problem, dict)
    name = ".".join(str(part).upper() for part in problem["loc"])
    return f"{PREFIX}{name}: {problem['msg']}"
