"""How a token is chosen, and when a sequence ends. Plain values; draws nothing."""

from typing import Annotated

from pydantic import Field

from protocol.wire import Message

MAX_STOP_TOKEN_IDS = 64

TokenId = Annotated[int, Field(ge=0, lt=2**31)]


class SamplingParams(Message):
    """One sequence's sampling parameters, every default already resolved.

    temperature 0 is greedy. top_k 0, top_p 1 and min_p 0 restrict nothing.
    The end-of-sequence tokens are among `stop_token_ids`, unless the request ignores
    them; none of these is sampled before `min_tokens` tokens exist.
    """

    temperature: float = Field(default=1.0, ge=0.0, le=10.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    top_k: int = Field(default=0, ge=0)
    min_p: float = Field(default=0.0, ge=0.0, le=1.0)
    seed: int = Field(default=0, ge=0, lt=2**63)
    max_tokens: int = Field(ge=1)
    min_tokens: int = Field(default=0, ge=0)
    stop_token_ids: tuple[TokenId, ...] = Field(
        default=(), max_length=MAX_STOP_TOKEN_IDS
    )
    logprobs: bool = False  # whether each token comes with its log probability
