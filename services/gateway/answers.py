"""Answers in OpenAI's words: JSON bodies and server-sent events. Does no I/O.

A chunk is assembled from text prepared once per request: only its own text, token ids
and finish reason are written per event.
"""

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from json.encoder import encode_basestring_ascii as quoted
from typing import Any

from gateway.errors import ApiError
from gateway.openai import Call
from gateway.output import Delta

DONE = b"data: [DONE]\n\n"
RUNNING = ',"logprobs":null,"finish_reason":null,"stop_reason":null}'


@dataclass(frozen=True, slots=True)
class Usage:
    """What a request cost, in tokens."""

    num_prompt_tokens: int
    num_output_tokens: int
    num_cached_tokens: int

    def fields(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.num_prompt_tokens,
            "completion_tokens": self.num_output_tokens,
            "total_tokens": self.num_prompt_tokens + self.num_output_tokens,
            "prompt_tokens_details": {"cached_tokens": self.num_cached_tokens},
        }


def _total(usages: Sequence[Usage]) -> Usage:
    return Usage(
        sum(usage.num_prompt_tokens for usage in usages),
        sum(usage.num_output_tokens for usage in usages),
        sum(usage.num_cached_tokens for usage in usages),
    )


@dataclass(frozen=True, slots=True)
class Choice:
    """A finished answer to one prompt."""

    prompt_ids: Sequence[int]
    last: Delta  # with all of the text and the tokens
    usage: Usage
    mean_logprob: float  # of its tokens, where choices are ranked by it


def _chosen(call: Call, candidates: Sequence[Choice]) -> Sequence[Choice]:
    """What a call gets of what was generated, prompt by prompt."""
    if not call.is_ranked:
        return candidates
    chosen = []
    for start in range(0, len(candidates), call.num_candidates):
        of_prompt = candidates[start : start + call.num_candidates]
        ranked = sorted(of_prompt, key=lambda choice: -choice.mean_logprob)
        chosen += ranked[: call.num_choices]
    return chosen


class Answer(ABC):
    """How one call is answered, whole or in chunks."""

    id_prefix: str
    whole_object: str
    chunk_object: str

    def __init__(self, call: Call, request_id: str, model: str) -> None:
        self._call = call
        self.is_streamed = bool(call.stream)
        self._has_token_ids = bool(call.return_token_ids)
        self._wants_usage = call.wants_usage
        self._header = {
            "id": self.id_prefix + request_id,
            "object": self.chunk_object,
            "created": int(time.time()),
            "model": model,
        }
        self._head = "data: " + json.dumps(self._header)[:-1]
        self._foot = "]" + (',"usage":null' if self._wants_usage else "") + "}\n\n"

    def whole(self, candidates: Sequence[Choice]) -> bytes:
        """The body of an answer that is not streamed; all that was generated counts."""
        choices = _chosen(self._call, candidates)
        body = {
            **self._header,
            "object": self.whole_object,
            "choices": [self._choice(*numbered) for numbered in enumerate(choices)],
            "usage": _total([choice.usage for choice in candidates]).fields(),
            **self._prompt_of_answer(choices[0].prompt_ids),
        }
        return json.dumps(body).encode()

    def first_chunk(self, index: int, delta: Delta, prompt_ids: Sequence[int]) -> bytes:
        """The first event of a choice."""
        opening = self._opening(index, quoted(delta.text), prompt_ids)
        return self._chunk(opening, delta)

    def chunk(self, index: int, delta: Delta) -> bytes:
        """Any later event of a choice."""
        return self._chunk(self._continuation(index, quoted(delta.text)), delta)

    def end(self, usages: Sequence[Usage]) -> bytes:
        """What follows the last chunk of the last choice."""
        if not self._wants_usage:
            return DONE
        fields = json.dumps(_total(usages).fields())
        return f'{self._head},"choices":[],"usage":{fields}}}\n\n'.encode() + DONE

    def is_worth_sending(self, delta: Delta) -> bool:
        """Whether a chunk would tell the client anything."""
        return bool(delta.text or delta.finish_reason or self._has_token_ids)

    def _chunk(self, choice: str, delta: Delta) -> bytes:
        ids = f',"token_ids":{list(delta.token_ids)}' if self._has_token_ids else ""
        if delta.finish_reason is None:
            return f"{choice}{ids}{RUNNING}{self._foot}".encode()
        stop_reason = json.dumps(delta.stop_reason)
        return (
            f'{choice}{ids},"logprobs":null,"finish_reason":"{delta.finish_reason}",'
            f'"stop_reason":{stop_reason}}}{self._foot}'
        ).encode()

    def _choice(self, index: int, choice: Choice) -> dict[str, Any]:
        fields = {
            "index": index,
            **self._content(choice),
            "logprobs": None,
            "finish_reason": choice.last.finish_reason,
            "stop_reason": choice.last.stop_reason,
        }
        if self._has_token_ids:
            fields["token_ids"] = list(choice.last.token_ids)
        return fields

    @abstractmethod
    def _content(self, choice: Choice) -> dict[str, Any]:
        """The fields of a whole choice that carry its text."""

    @abstractmethod
    def _prompt_of_answer(self, prompt_ids: Sequence[int]) -> dict[str, Any]:
        """The fields of a whole answer that carry its prompt."""

    @abstractmethod
    def _opening(self, index: int, text: str, prompt_ids: Sequence[int]) -> str:
        """A choice's first chunk up to its text."""

    @abstractmethod
    def _continuation(self, index: int, text: str) -> str:
        """A choice's later chunks up to their text."""


class CompletionAnswer(Answer):
    """Of POST /v1/completions."""

    id_prefix = "cmpl-"
    whole_object = "text_completion"
    chunk_object = "text_completion"

    def _content(self, choice: Choice) -> dict[str, Any]:
        if not self._has_token_ids:
            return {"text": choice.last.text}
        return {
            "text": choice.last.text,
            "prompt_token_ids": list(choice.prompt_ids),
        }

    def _prompt_of_answer(self, prompt_ids: Sequence[int]) -> dict[str, Any]:
        return {}

    def _opening(self, index: int, text: str, prompt_ids: Sequence[int]) -> str:
        opening = self._continuation(index, text)
        if self._has_token_ids:
            opening += f',"prompt_token_ids":{list(prompt_ids)}'
        return opening

    def _continuation(self, index: int, text: str) -> str:
        return f'{self._head},"choices":[{{"index":{index},"text":{text}'


class ChatAnswer(Answer):
    """Of POST /v1/chat/completions."""

    id_prefix = "chatcmpl-"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def _content(self, choice: Choice) -> dict[str, Any]:
        return {
            "message": {
                "role": "assistant",
                "content": choice.last.text,
                "refusal": None,
            }
        }

    def _prompt_of_answer(self, prompt_ids: Sequence[int]) -> dict[str, Any]:
        return {"prompt_token_ids": list(prompt_ids)} if self._has_token_ids else {}

    def _opening(self, index: int, text: str, prompt_ids: Sequence[int]) -> str:
        prompt = ""
        if self._has_token_ids:
            prompt = f',"prompt_token_ids":{list(prompt_ids)}'
        return (
            f'{self._head}{prompt},"choices":[{{"index":{index},'
            f'"delta":{{"role":"assistant","content":{text}}}'
        )

    def _continuation(self, index: int, text: str) -> str:
        return f'{self._head},"choices":[{{"index":{index},"delta":{{"content":{text}}}'


def error_event(error: ApiError) -> bytes:
    """How a stream that has begun says that it cannot go on."""
    return b"data: " + error.body() + b"\n\n" + DONE


def model_card(name: str, created: int, max_model_len: int) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "tandem",
        "root": name,
        "parent": None,
        "max_model_len": max_model_len,
    }
