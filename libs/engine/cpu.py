"""The `cpu` backend: paged attention by the Numba kernel, straight from the blocks."""

from collections.abc import Callable

from torch import Tensor

from engine.attention import ScoreRule, bits
from engine.batch import Batch
from engine.blocks import KVBlocks
from engine.kernel import LayerBlocks, Rule, StepIndex, paged_attention
from engine.program import Kind
from engine.recorder import Native, Recorder


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
        self._index = StepIndex(batch.slot_mapping, batch.block_tables, batch.tiles)

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: ScoreRule
    ) -> Tensor:
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        blocks = self._blocks
        is_last = layer == len(blocks.k_offsets) - 1
        narrow, index = self._narrow if is_last else None, self._index
        output = query.new_empty((*query.shape[:2], value.shape[-1]))
        if narrow is not None:
            index = index._replace(tiles=self._batch.sampled_tiles)
            if self._recorder is None:
                output.zero_()
        paged_attention(
            (bits(query), bits(key), bits(value)),
            bits(output),
            LayerBlocks(
                blocks.memory,
                blocks.block_size,
                blocks.k_offsets[layer],
                blocks.v_offsets[layer],
            ),
            index,
            Rule(rule.scaling, rule.window, rule.softcap),
        )
        if self._recorder is not None:
            tensors = query, key, value, output
            num_rows = len(query) if narrow is None else len(self._batch.last_rows)
            self._note(self._recorder, layer, tensors, (rule, num_rows))
        if narrow is not None:
            narrow()
        return output

    def _note(
        self,
        recorder: Recorder,
        layer: int,
        tensors: tuple[Tensor, Tensor, Tensor, Tensor],
        what: tuple[ScoreRule, int],
    ) -> None:
        """Take down a layer, and that so many rows attend."""
        rule, num_rows = what
        query, key, value, output = tensors
        tokens, heads, k_dim = query.shape
        kv_heads, v_dim = value.shape[1:]
        offsets = self._blocks.k_offsets[layer], self._blocks.v_offsets[layer]
        stored = kv_heads, k_dim, v_dim, *offsets
        recorder.note(Native(Kind.STORE, tokens, (key, value), stored))
        attended = heads, k_dim, v_dim, *offsets, kv_heads, rule.window
        constants = rule.scaling, rule.softcap
        recorder.note(
            Native(Kind.ATTEND, num_rows, (query, output), attended, constants)
        )
