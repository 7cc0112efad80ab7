"""One packed forward pass of a bound skeleton."""

import inspect
from typing import Any

import torch
from torch import Tensor

from engine.attention import PagedAttention
from engine.batch import Batch


class Forward:
    """Calls the model the way its signature allows."""

    def __init__(self, model: Any) -> None:
        self._model = model
        # Logits of a long chunk are large (tokens x vocabulary) and only the last row
        # is of use, so most models can be told which rows to make.
        parameters = inspect.signature(model.forward).parameters
        self._keeps_logits = "logits_to_keep" in parameters

    def __call__(self, batch: Batch, attention: PagedAttention, rows: Tensor) -> Tensor:
        """Logits of those packed rows, [len(rows), vocab_size], in the model's dtype.

        Writes the batch's K/V wherever `attention` keeps them.
        """
        token_ids = torch.from_numpy(batch.token_ids).unsqueeze(0)
        positions = torch.from_numpy(batch.positions).unsqueeze(0)
        with torch.inference_mode():
            return self.run(token_ids, positions, attention, rows)

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
