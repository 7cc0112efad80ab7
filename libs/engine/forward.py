"""One packed forward pass of a bound skeleton."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from engine.attention import PagedAttention, ScoreRule
from engine.batch import Batch
from engine.blocks import KVBlocks


class Forward:
    """Calls the model the way its signature allows."""

    def __init__(
        self,
        model: Any,
        device: torch.device | None = None,
        before_layer: Callable[[], None] = lambda: None,
    ) -> None:
        """The model lies on `device`; the CPU if none is named.

        `before_layer` is called before each layer's attention, of a step that is not recorded.
        """
        self._model = model
        self._before_layer = before_layer
        self._device = device or torch.device("cpu")
        # Logits of a long chunk are large (tokens x vocabulary) and only the last row
        # is of use, so most models can be told which rows to make.
        parameters = inspect.signature(model.forward).parameters
        self._keeps_logits = "logits_to_keep" in parameters

    @property
    def weights(self) -> dict[str, Tensor]:
        """The model's parameters, by name."""
        return dict(self._model.named_parameters())

    def __call__(self, batch: Batch, attention: PagedAttention, rows: Tensor) -> Tensor:
        """Logits of those packed rows, [len(rows), vocab_size], in the model's dtype.

        Writes the batch's K/V wherever `attention` keeps them.
        """
        token_ids, positions = (
            torch.from_numpy(values).unsqueeze(0).to(self._device)
            for values in (batch.token_ids, batch.positions)
        )
        stepwise = _Stepwise(attention, self._before_layer)
        with torch.inference_mode():
            return self.run(token_ids, positions, stepwise, rows.to(self._device))

    def run(
        self,
        token_ids: Tensor,
        positions: Tensor,
        attention: PagedAttention,
        rows: Tensor,
    ) -> Tensor:
        """The same of [1, num_tokens] tensors, in the caller's inference mode."""
        arguments: dict[str, Any] = {"paged_attention": attention, "use_cache": False}
        if self._keeps_logits:
            arguments["logits_to_keep"] = rows
        logits: Tensor = self._model(
            input_ids=token_ids, position_ids=positions, **arguments
        ).logits[0]
        return logits if self._keeps_logits else logits[rows]


class _Stepwise:
    """Attention, and what is done before it."""

    def __init__(self, attention: PagedAttention, before: Callable[[], None]) -> None:
        self._attention, self._before = attention, before

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: ScoreRule
    ) -> Tensor:
        self._before()
        return self._attention.attend(layer, query, key, value, rule)


class ByModules:
    """Logits by the modules of a model, and the reason why there is no faster way."""

    def __init__(
        self,
        forward: Forward,
        attention: Callable[[KVBlocks, Batch], PagedAttention],
        reason: str,
    ) -> None:
        self._forward = forward
        self._attention = attention
        self.reason = reason

    def logits(self, batch: Batch, blocks: KVBlocks) -> Tensor:
        """Of the sampled rows, writing K/V into `blocks`."""
        rows = torch.from_numpy(batch.last_rows)
        return self._forward(batch, self._attention(blocks, batch), rows)
