"""One request's output: tokens become text until it ends. Synchronous; sends nothing."""

from collections.abc import Sequence
from typing import NamedTuple

from gateway.detokenize import Detokenizer
from gateway.orders import Order
from gateway.stop import StopStrings
from protocol.messages import FinishReason


class Delta(NamedTuple):
    """What the client is told next."""

    text: str
    token_ids: Sequence[int]
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None


class Output:
    """Works token by token, so that it does not matter how tokens were batched."""

    def __init__(self, order: Order, detokenizer: Detokenizer) -> None:
        self._order = order
        self._detokenizer = detokenizer
        self._stops = StopStrings(order.stop_strings)
        self._min_tokens = order.sampling.min_tokens
        self.num_tokens = 0

    def push(self, token_ids: Sequence[int], finish: FinishReason | None) -> Delta:
        """The next tokens, and how the pool says that they end."""
        text = ""
        num_shown = len(token_ids) - (finish == "stop")  # a stop token has no text
        for place in range(num_shown):
            self.num_tokens += 1
            text += self._check(self._detokenizer.push(token_ids[place]))
            if self._stops.matched is not None:
                return self._stopped(text, token_ids[: place + 1])
        if finish is None:
            return Delta(text, token_ids)
        self.num_tokens += len(token_ids) - num_shown
        text += self._check(self._detokenizer.flush())
        if self._stops.matched is not None:
            return self._stopped(text, token_ids)
        text += self._stops.flush()
        reason = self._stop_token(token_ids) if finish == "stop" else None
        return Delta(text, token_ids, finish, reason)

    def _check(self, piece: str) -> str:
        if self.num_tokens <= self._min_tokens:
            return piece
        return self._stops.push(piece)

    def _stopped(self, text: str, token_ids: Sequence[int]) -> Delta:
        return Delta(text, token_ids, "stop", self._stops.matched)

    def _stop_token(self, token_ids: Sequence[int]) -> int | None:
        """The token that the client asked to stop at; None for the model's own end."""
        last = token_ids[-1] if token_ids else None
        return last if last in self._order.client_stop_ids else None
