"""A checked call becomes an order: token ids, sampling, stops. Knows no HTTP."""

import secrets
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

from gateway.errors import InvalidRequest
from gateway.model import Model
from gateway.openai import Call
from protocol.messages import RequestId
from protocol.sampling import MAX_STOP_TOKEN_IDS, SamplingParams

CONTEXT_EXCEEDED = "context_length_exceeded"
SEED_BITS = 63
MAX_SEED = (1 << SEED_BITS) - 1


@dataclass(frozen=True, slots=True)
class Order:
    """One sequence to generate, as the pool and the gateway need to know it."""

    request_id: RequestId
    prompt_ids: tuple[int, ...]
    choice: int  # which of its prompt's answers it is
    sampling: SamplingParams
    stop_strings: tuple[str, ...]
    client_stop_ids: frozenset[int]  # those the client named, not the model's own
    cache_salt: str

    @property
    def num_counted_prompt_tokens(self) -> int:
        """A prompt is computed once for all its answers, and counts with the first."""
        return len(self.prompt_ids) if self.choice == 0 else 0


@dataclass(frozen=True, slots=True)
class Limits:
    """What fits into the pool."""

    max_tokens: int  # prompt and output together
    vocab_size: int

    def check_ids(self, token_ids: list[int], param: str) -> None:
        """InvalidRequest unless all of them are tokens of the model."""
        if token_ids and max(token_ids) >= self.vocab_size:
            raise InvalidRequest(
                f"'{param}' contains token ids outside the vocabulary "
                f"of {self.vocab_size} tokens.",
                param=param,
            )

    def num_output(self, num_prompt: int, asked: int | None, default: int) -> int:
        """How many tokens to generate at most; InvalidRequest if they do not fit."""
        room = self.max_tokens - num_prompt
        if room < 1:
            raise InvalidRequest(
                f"This model's maximum context length is {self.max_tokens} tokens. "
                f"However, your request has {num_prompt} input tokens. "
                "Please reduce the length of the input.",
                code=CONTEXT_EXCEEDED,
            )
        if asked is None:
            return min(default, room)
        if asked > room:
            raise InvalidRequest(
                f"'max_tokens' or 'max_completion_tokens' is too large: {asked}. "
                f"This model's maximum context length is {self.max_tokens} tokens and "
                f"your request has {num_prompt} input tokens "
                f"({asked} > {self.max_tokens} - {num_prompt}).",
                param="max_tokens",
                code=CONTEXT_EXCEEDED,
            )
        return asked


@dataclass(frozen=True, slots=True)
class OrderBook:
    """Turns calls into orders for one model in one pool."""

    model: Model
    limits: Limits

    def orders(
        self, call: Call, prompt_ids: list[int], default_output: int
    ) -> list[Order]:
        """One for each answer to a prompt; InvalidRequest if none could be served."""
        if not prompt_ids:
            raise InvalidRequest("The prompt has no tokens.", param="prompt")
        max_tokens = self.limits.num_output(
            len(prompt_ids), call.max_output, default_output
        )
        self.limits.check_ids(prompt_ids, "prompt")
        self.limits.check_ids(call.stop_token_ids or [], "stop_token_ids")
        first = Order(
            request_id=_request_id(),
            prompt_ids=tuple(prompt_ids),
            choice=0,
            sampling=self._sampling(call, max_tokens),
            stop_strings=tuple(call.stop),
            client_stop_ids=frozenset(call.stop_token_ids or ()),
            cache_salt=call.cache_salt or "",
        )
        return [first, *(_another(first, i) for i in range(1, call.num_candidates))]

    def _sampling(self, call: Call, max_tokens: int) -> SamplingParams:
        if (call.min_tokens or 0) > max_tokens:
            raise InvalidRequest(
                f"'min_tokens' must not be above {max_tokens}, the most tokens that "
                "this request generates.",
                param="min_tokens",
            )
        return self.model.sampling.changed(
            **_given(call),
            seed=_seed(call.seed),
            max_tokens=max_tokens,
            min_tokens=call.min_tokens or 0,
            stop_token_ids=self._stop_token_ids(call),
            logprobs=call.is_ranked,
        )

    def _stop_token_ids(self, call: Call) -> tuple[int, ...]:
        own = () if call.ignore_eos else self.model.eos_ids
        token_ids = tuple(dict.fromkeys((*own, *(call.stop_token_ids or ()))))
        if len(token_ids) > MAX_STOP_TOKEN_IDS:
            raise InvalidRequest("Too many 'stop_token_ids'.", param="stop_token_ids")
        return token_ids


def _request_id() -> RequestId:
    return RequestId(secrets.token_hex(16))


def _another(first: Order, choice: int) -> Order:
    """The same, to be drawn otherwise: by a seed that follows from the first one's."""
    digest = blake2b(f"{first.sampling.seed}/{choice}".encode(), digest_size=8).digest()
    seed = int.from_bytes(digest) & MAX_SEED
    return replace(
        first,
        request_id=_request_id(),
        choice=choice,
        sampling=first.sampling.changed(seed=seed),
    )


def _given(call: Call) -> dict[str, Any]:
    """The sampling parameters that the client set; the others are the model's."""
    fields = {
        "temperature": call.temperature,
        "top_p": call.top_p,
        "top_k": None if call.top_k is None else max(call.top_k, 0),
        "min_p": call.min_p,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _seed(asked: int | None) -> int:
    """As in vLLM -1 means any; other negative seeds are as good as positive ones."""
    if asked is None or asked == -1:
        return secrets.randbits(SEED_BITS)
    return asked & MAX_SEED
