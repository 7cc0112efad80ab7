"""The `cpu` backend: paged attention by the Numba kernel, straight from the blocks."""

from torch import Tensor

from engine.attention import ScoreRule, bits
from engine.batch import Batch
from engine.blocks import KVBlocks
from engine.kernel import LayerBlocks, Rule, StepIndex, paged_attention


class CpuAttention:
    """One step's attention on the CPU (see `engine.attention.PagedAttention`)."""

    def __init__(self, blocks: KVBlocks, batch: Batch) -> None:
        self._blocks = blocks
        self._index = StepIndex(batch.slot_mapping, batch.block_tables, batch.tiles)

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: ScoreRule
    ) -> Tensor:
        output = query.new_empty((*query.shape[:2], value.shape[-1]))
        blocks = self._blocks
        paged_attention(
            (
                bits(query.contiguous()),
                bits(key.contiguous()),
                bits(value.contiguous()),
            ),
            bits(output),
            LayerBlocks(
                blocks.memory,
                blocks.block_size,
                blocks.k_offsets[layer],
                blocks.v_offsets[layer],
            ),
            self._index,
            Rule(rule.scaling, rule.window, rule.softcap),
        )
        return output
