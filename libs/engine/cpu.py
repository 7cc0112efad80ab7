"""The `cpu` backend: paged attention by the Numba kernel, straight from the blocks."""

from collections.abc import Callable

import torch
from numba import get_num_threads
from torch import Tensor

from engine.attention import ScoreRule
from engine.batch import Batch
from engine.blocks import KVBlocks
from engine.operations import Kind, Unit
from engine.place import place_of
from engine.program import program_of
from engine.recorder import Native, Recorder, compute


class CpuAttention:
    """One step's attention on the CPU (see `engine.attention.PagedAttention`)."""

    def __init__(
        self,
        blocks: KVBlocks,
        batch: Batch,
        recorder: Recorder | None = None,
        narrow: Callable[[], None] | None = None,
    ) -> None:
        """`narrow` is called after the last layer, which attends for wanted rows only."""
        self._blocks = blocks
        self._recorder = recorder
        self._narrow = narrow
        self._batch = batch
        self._place = place_of(batch, blocks, get_num_threads())
        self._program = program_of(2)

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: ScoreRule
    ) -> Tensor:
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        is_last = layer == len(self._blocks.k_offsets) - 1
        narrow = self._narrow if is_last else None
        output = query.new_empty((*query.shape[:2], value.shape[-1]))
        if narrow is not None and self._recorder is None:
            output.zero_()
        unit, num_rows = Unit.TOKENS, len(query)
        if narrow is not None:
            unit, num_rows = Unit.SAMPLED, len(self._batch.last_rows)
        tensors = query, key, value, output
        operations = self._operations(layer, tensors, (rule, num_rows))
        compute(operations, self._program, self._place, unit)
        if self._recorder is not None:
            for operation in operations:
                self._recorder.note(operation)
        if narrow is not None:
            narrow()
        return output

    def _operations(
        self,
        layer: int,
        tensors: tuple[Tensor, Tensor, Tensor, Tensor],
        what: tuple[ScoreRule, int],
    ) -> tuple[Native, Native]:
        """A layer's keys and values are stored, then so many rows attend."""
        rule, num_rows = what
        query, key, value, output = tensors
        tokens, heads, k_dim = query.shape
        kv_heads, v_dim = value.shape[1:]
        offsets = self._blocks.k_offsets[layer], self._blocks.v_offsets[layer]
        is_wide = query.dtype == torch.float32
        store = Kind.STORE_FLOAT32 if is_wide else Kind.STORE
        attend = Kind.ATTEND_FLOAT32 if is_wide else Kind.ATTEND
        stored = kv_heads, k_dim, v_dim, *offsets
        attended = heads, k_dim, v_dim, *offsets, kv_heads, rule.window
        constants = rule.scaling, rule.softcap
        return (
            Native(store, tokens, (key, value), stored),
            Native(attend, num_rows, (query, output), attended, constants),
        )
