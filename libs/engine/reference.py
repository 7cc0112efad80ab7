"""The `reference` backend: the same attention in plain torch, for tests and proofs."""

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.attention import ScoreRule
from engine.batch import Batch
from engine.blocks import KVBlocks


@dataclass(frozen=True, slots=True)
class ReferenceAttention:
    """One step's attention by gathering every key (see `PagedAttention`)."""

    blocks: KVBlocks
    batch: Batch

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: ScoreRule
    ) -> Tensor:
        keys, values = self._paged(layer, key, value)
        slots = torch.from_numpy(self.batch.slot_mapping)
        block, offset = slots // self.blocks.block_size, slots % self.blocks.block_size
        keys[block, :, offset] = key
        values[block, :, offset] = value
        output = query.new_empty(*query.shape[:2], value.shape[-1])
        for table, start, count, position in self.batch.tiles.tolist():
            blocks = torch.from_numpy(self.batch.block_tables[table])
            output[start : start + count] = _attend_one(
                query[start : start + count],
                _in_order(keys[blocks], position + count),
                _in_order(values[blocks], position + count),
                rule,
            )
        return output

    def _paged(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """One layer's K and V, both as [num_blocks, num_kv_heads, block_size, dim]."""
        size = self.blocks.block_size
        memory = torch.from_numpy(self.blocks.memory).view(key.dtype)

        def part(offset: int, *shape: int) -> Tensor:
            end = offset + torch.Size(shape).numel()
            return memory[:, offset:end].view(-1, *shape)

        k_offset, v_offset = self.blocks.k_offsets[layer], self.blocks.v_offsets[layer]
        keys = part(k_offset, key.shape[1], key.shape[2], size).transpose(2, 3)
        return keys, part(v_offset, value.shape[1], size, value.shape[2])


def _in_order(blocks: Tensor, count: int) -> Tensor:
    """Blocks of one sequence as its first `count` tokens, [heads, count, dim]."""
    return blocks.transpose(0, 1).flatten(1, 2)[:, :count].float()


def _attend_one(query: Tensor, keys: Tensor, values: Tensor, rule: ScoreRule) -> Tensor:
    """The last rows of one sequence; query [rows, heads, dim], keys [kv, count, dim]."""
    rows, heads, _ = query.shape
    count = keys.shape[1]
    group = heads // keys.shape[0]
    scores = torch.einsum(
        "rhd,hkd->hrk", query.float(), keys.repeat_interleave(group, dim=0)
    )
    scores *= rule.scaling
    if rule.softcap:
        scores = torch.tanh(scores / rule.softcap) * rule.softcap
    distance = torch.arange(count - rows, count)[:, None] - torch.arange(count)
    hidden = distance < 0
    if rule.window:
        hidden |= distance >= rule.window
    weights = scores.masked_fill(hidden, -torch.inf).softmax(dim=-1)
    output = torch.einsum("hrk,hkd->rhd", weights, values.repeat_interleave(group, 0))
    return output.to(query.dtype)
