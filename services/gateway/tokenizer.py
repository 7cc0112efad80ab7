"""Text to token ids and back, with the model's tokenizer. Needs no torch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import structlog
from jinja2 import TemplateError

from gateway.detokenize import Detokenizer
from gateway.errors import InvalidRequest
from mesh.errors import ConfigurationError

FILES = ("tokenizer*", "vocab*", "spiece.model", "sentencepiece*", "tekken.json")

MAX_WINDOWS = 1 << 16  # of the detokenizer, whose text is remembered: about 15 MB

PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n"
    "{% endfor %}assistant:"
)

Encode = Callable[[str, bool], list[int]]
Decode = Callable[[Sequence[int]], str]

logger = structlog.get_logger()


class Message(Protocol):
    """One turn of a chat."""

    @property
    def role(self) -> str: ...
    @property
    def content(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """One model's tokenizer; safe to use from several threads."""

    encode_text: Encode
    decode: Decode
    render: Callable[[list[dict[str, str]]], str]
    decode_window: Callable[[tuple[int, ...]], str]  # remembers frequent ones
    special_ids: frozenset[int]
    eos_ids: tuple[int, ...]
    max_token_characters: int
    is_template_plain: bool

    def encode(self, text: str) -> list[int]:
        """A prompt's tokens, with those the model wants at its start."""
        return self.encode_text(text, True)

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """A conversation's tokens; InvalidRequest if the template refuses it."""
        turns = [{"role": turn.role, "content": turn.content} for turn in messages]
        try:
            text = self.render(turns)
        except TemplateError as error:
            raise InvalidRequest(
                f"The chat template refuses these messages: {error}", param="messages"
            ) from None
        # A chat template writes the special tokens itself.
        return self.encode_text(text, self.is_template_plain)

    def detokenizer(self, prompt_ids: Sequence[int] = ()) -> Detokenizer:
        """Of an output that continues this prompt."""
        return Detokenizer(self.decode_window, self.special_ids, prompt_ids)


def load_tokenizer(model: str, chat_template: str) -> Tokenizer | None:
    """None for a model directory without tokenizer files."""
    directory = Path(model)
    if directory.is_dir() and not any(
        True for pattern in FILES for _ in directory.glob(pattern)
    ):
        logger.warning("tokenizer.missing", serves="prompts of token ids only")
        return None
    from transformers import AutoTokenizer  # seconds to import: not before it is needed

    try:
        loaded = AutoTokenizer.from_pretrained(model)
    except Exception as error:  # of a broken file it raises whatever it stumbles over
        raise ConfigurationError(
            f"TANDEM_MODEL: no tokenizer could be read: {_first_line(error)}"
        ) from error
    return _wrapped(loaded, _template(loaded, chat_template))


def _first_line(error: Exception) -> str:
    line = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {line}"


def _template(loaded: Any, path: str) -> str | None:
    """The chat template to use instead of the tokenizer's own, if any."""
    if path:
        try:
            return Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"TANDEM_CHAT_TEMPLATE: {error}") from None
    if loaded.chat_template:
        return None
    logger.info("chat_template.missing", using="a plain one")
    return PLAIN_TEMPLATE


def _wrapped(loaded: Any, template: str | None) -> Tokenizer:
    def render(turns: list[dict[str, str]]) -> str:
        text: str = loaded.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True, chat_template=template
        )
        return text

    encode, decode = _fast(loaded) if loaded.is_fast else _slow(loaded)
    return Tokenizer(
        encode_text=encode,
        decode=decode,
        decode_window=lru_cache(MAX_WINDOWS)(decode),
        render=render,
        special_ids=_special_ids(loaded),
        eos_ids=() if loaded.eos_token_id is None else (loaded.eos_token_id,),
        max_token_characters=max(map(len, loaded.get_vocab()), default=1),
        is_template_plain=template is PLAIN_TEMPLATE,
    )


def _special_ids(loaded: Any) -> frozenset[int]:
    added = loaded.added_tokens_decoder.items()
    marked = {token_id for token_id, token in added if token.special}
    return frozenset(marked.union(loaded.all_special_ids))


def _fast(loaded: Any) -> tuple[Encode, Decode]:
    """Straight to the Rust tokenizer: the wrapper round it is not thread-safe."""
    backend = loaded.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()

    def encode(text: str, has_special_tokens: bool) -> list[int]:
        ids: list[int] = backend.encode(text, add_special_tokens=has_special_tokens).ids
        return ids

    def decode(token_ids: Sequence[int]) -> str:
        text: str = backend.decode(token_ids, False)
        return text

    return encode, decode


def _slow(loaded: Any) -> tuple[Encode, Decode]:
    def encode(text: str, has_special_tokens: bool) -> list[int]:
        ids: list[int] = loaded.encode(text, add_special_tokens=has_special_tokens)
        return ids

    def decode(token_ids: Sequence[int]) -> str:
        text: str = loaded.decode([*token_ids], clean_up_tokenization_spaces=False)
        return text

    return encode, decode
