"""The `reference` backend: the same attention in plain torch, without any kernel.

For who serves before kernels are compiled, and for tests and proofs.
"""

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
        self._store(keys, values, key, value)
        k_dim, tables = key.shape[-1], torch.from_numpy(self.batch.block_tables)
        output = query.new_empty(*query.shape[:2], value.shape[-1])
        for table, start, count, position in self.batch.tiles.tolist():
            end = position + count
            blocks = tables[table, : -(-end // self.blocks.block_size)]
            output[start : start + count] = _attend_one(
                query[start : start + count],
                _ordered_keys(keys[blocks])[:, :end, :k_dim],
                _ordered_values(values[blocks])[:, :end],
                rule,
            )
        return output

    def _store(self, keys: Tensor, values: Tensor, key: Tensor, value: Tensor) -> None:
        packed = keys.shape[-1]
        slots = torch.from_numpy(self.batch.slot_mapping)
        block, offset = slots // self.blocks.block_size, slots % self.blocks.block_size
        filled = torch.nn.functional.pad(key, (0, -key.shape[-1] % packed))
        keys[block, :, :, offset] = filled.view(*key.shape[:2], -1, packed)
        at, half = offset // packed, offset % packed
        for later in range(1, packed):  # of a begun pair, what is computed later
            values[block, :, at, :, (half + later).clamp(max=packed - 1)] = 0
        values[block, :, at, :, half] = value

    def _paged(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """One layer's K and V as they lie (see `protocol.memory`)."""
        size, packed = self.blocks.block_size, 4 // key.itemsize
        memory = torch.from_numpy(self.blocks.memory).view(key.dtype)

        def part(offset: int, *shape: int) -> Tensor:
            end = offset + torch.Size(shape).numel()
            return memory[:, offset:end].view(-1, *shape)

        k_offset, v_offset = self.blocks.k_offsets[layer], self.blocks.v_offsets[layer]
        depth = -(-key.shape[2] // packed)
        keys = part(k_offset, key.shape[1], depth, size, packed)
        return keys, part(
            v_offset, value.shape[1], size // packed, value.shape[2], packed
        )


def _ordered_keys(blocks: Tensor) -> Tensor:
    """Blocks of one sequence by head, token and dim, as float32."""
    return blocks.permute(1, 0, 3, 2, 4).flatten(3).flatten(1, 2).float()


def _ordered_values(blocks: Tensor) -> Tensor:
    """The same of values."""
    return blocks.permute(1, 0, 2, 4, 3).flatten(1, 3).float()


def _attend_one(query: Tensor, keys: Tensor, values: Tensor, rule: ScoreRule) -> Tensor:
    """The last rows of one sequence; query [rows, heads, dim], keys [kv, count, dim]."""
    rows, heads, _ = query.shape
    num_kv_heads, count, _ = keys.shape
    by_head = query.float().transpose(0, 1).reshape(num_kv_heads, -1, query.shape[2])
    scores = (by_head @ keys.transpose(1, 2)).view(heads, rows, count)
    scores *= rule.scaling
    if rule.softcap:
        scores = torch.tanh(scores / rule.softcap) * rule.softcap
    distance = torch.arange(count - rows, count)[:, None] - torch.arange(count)
    hidden = distance < 0
    if rule.window:
        hidden |= distance >= rule.window
    weights = scores.masked_fill_(hidden, -torch.inf).softmax(dim=-1)
    answer = weights.view(num_kv_heads, -1, count) @ values
    return answer.view(heads, rows, -1).transpose(0, 1).to(query.dtype)
