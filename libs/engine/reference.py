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
        self._store(keys, values, key, value)
        ordered = keys.transpose(2, 3).flatten(3)[..., : key.shape[-1]]
        in_order = ordered, values.transpose(3, 4).flatten(2, 3)
        output = query.new_empty(*query.shape[:2], value.shape[-1])
        for table, start, count, position in self.batch.tiles.tolist():
            blocks = torch.from_numpy(self.batch.block_tables[table])
            output[start : start + count] = _attend_one(
                query[start : start + count],
                _in_order(in_order[0][blocks], position + count),
                _in_order(in_order[1][blocks], position + count),
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
