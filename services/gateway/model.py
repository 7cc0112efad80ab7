"""What the gateway must know of the model: name, end tokens, sampling defaults."""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gateway.detokenize import Detokenizer
from gateway.errors import InvalidRequest
from gateway.openai import ChatMessage, Prompt
from gateway.settings import Settings
from gateway.tokenizer import Tokenizer, load_tokenizer
from mesh.errors import ConfigurationError
from protocol.sampling import SamplingParams

DEFAULTS = ("temperature", "top_p", "top_k", "min_p")

# Shorter texts are tokenised faster than a thread takes over.
MAX_INLINE_CHARACTERS = 8192


@dataclass(frozen=True, slots=True)
class Model:
    """The served model, seen from the door."""

    name: str
    eos_ids: tuple[int, ...]
    sampling: SamplingParams  # its own defaults
    tokenizer: Tokenizer | None
    created: int = field(default_factory=lambda: int(time.time()))

    async def encode(self, prompt: Prompt, max_tokens: int) -> list[int]:
        """A prompt's token ids; InvalidRequest if it is surely too long."""
        if isinstance(prompt, list):
            return prompt
        tokenizer = self._needed()
        self._check_length(tokenizer, len(prompt), max_tokens)
        if len(prompt) <= MAX_INLINE_CHARACTERS:
            return tokenizer.encode(prompt)
        return await asyncio.to_thread(tokenizer.encode, prompt)

    async def encode_chat(
        self, messages: Sequence[ChatMessage], max_tokens: int
    ) -> list[int]:
        """A conversation's token ids; InvalidRequest if it is surely too long."""
        tokenizer = self._needed()
        num_characters = sum(len(message.content) for message in messages)
        self._check_length(tokenizer, num_characters, max_tokens)
        if num_characters <= MAX_INLINE_CHARACTERS:
            return tokenizer.encode_chat(messages)
        return await asyncio.to_thread(tokenizer.encode_chat, messages)

    def detokenizer(self, prompt_ids: Sequence[int]) -> Detokenizer:
        """Of an output that continues this prompt; empty without a tokenizer."""
        if self.tokenizer is None:
            return Detokenizer(lambda _: "", ())
        return self.tokenizer.detokenizer(prompt_ids)

    def _needed(self) -> Tokenizer:
        if self.tokenizer is None:
            raise InvalidRequest(
                "This model is served without a tokenizer: send 'prompt' as token ids.",
                param="prompt",
            )
        return self.tokenizer

    def _check_length(
        self, tokenizer: Tokenizer, num_characters: int, max_tokens: int
    ) -> None:
        """Before tokenising: no token is longer than the vocabulary's longest."""
        if num_characters > max_tokens * tokenizer.max_token_characters:
            raise InvalidRequest(
                f"This model's maximum context length is {max_tokens} tokens. However, "
                f"your request has {num_characters} characters, which is more.",
                code="context_length_exceeded",
            )


def load_model(settings: Settings) -> Model:
    """Read what the model's files say; ConfigurationError if they cannot be read."""
    generation = _read(settings.model, "generation_config.json") or {}
    config = _read(settings.model, "config.json")
    if config is None:
        raise ConfigurationError(f"TANDEM_MODEL: {settings.model} has no config.json")
    tokenizer = load_tokenizer(settings.model, settings.chat_template)
    return Model(
        name=settings.served_model_name or _own_name(settings.model),
        eos_ids=_eos_ids(generation, config, config.get("text_config"))
        or (tokenizer.eos_ids if tokenizer else ()),
        sampling=_sampling(generation),
        tokenizer=tokenizer,
    )


def _own_name(model: str) -> str:
    path = Path(model)
    return path.resolve().name if path.is_dir() else model


def _read(model: str, name: str) -> dict[str, Any] | None:
    """One JSON file of a model directory or a hub repository; None if it has none."""
    path = _path(model, name)
    if path is None:
        return None
    try:
        fields = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"TANDEM_MODEL: {path}: {error}") from None
    if not isinstance(fields, dict):
        raise ConfigurationError(f"TANDEM_MODEL: {path} is no JSON object")
    return fields


def _path(model: str, name: str) -> Path | None:
    if Path(model).is_dir():
        path = Path(model, name)
        return path if path.is_file() else None
    from transformers.utils.hub import cached_file  # slow to import

    try:
        found = cached_file(model, name, _raise_exceptions_for_missing_entries=False)
    except (OSError, ValueError) as error:
        line = str(error).strip().partition("\n")[0]
        raise ConfigurationError(f"TANDEM_MODEL: {line}") from None
    return Path(found) if found else None


def _eos_ids(*configs: dict[str, Any] | None) -> tuple[int, ...]:
    """The end tokens of the first configuration that names some."""
    for config in configs:
        match (config or {}).get("eos_token_id"):
            case int(token_id):
                return (token_id,)
            case [*token_ids] if token_ids:
                return tuple(token_ids)
    return ()


def _sampling(generation: dict[str, Any]) -> SamplingParams:
    given = {
        name: generation[name] for name in DEFAULTS if generation.get(name) is not None
    }
    try:
        return SamplingParams(max_tokens=1, **given)
    except ValidationError as error:
        names = ", ".join(str(problem["loc"][0]) for problem in error.errors())
        raise ConfigurationError(
            f"TANDEM_MODEL: generation_config.json: {names}"
        ) from None
