"""A pass of which a few rows are sampled: after the last attention only these go on.

Then no token hears of another any more, and of a prompt of 512 tokens 511 would go through
most of the last layer for nothing. A chunk that is not its prompt's last has no row at all.
"""

import torch
from torch import Tensor

from engine.batch import Batch
from engine.blocks import KVBlocks
from engine.cpu import CpuAttention
from engine.forward import Forward
from engine.recorder import Recorder


def sampled_logits(
    forward: Forward, recorder: Recorder, batch: Batch, blocks: KVBlocks
) -> Tensor:
    """As `Forward`, of the batch's sampled rows, writing K/V into `blocks`.

    `recorder` is that of the stand-ins in the model.
    """
    rows, num_tokens = torch.from_numpy(batch.last_rows), len(batch.token_ids)
    if 2 * len(rows) > num_tokens:  # picking them out would cost what it saves
        return forward(batch, CpuAttention(blocks, batch), rows)
    with recorder.narrowing(num_tokens, rows) as narrow:
        return forward(batch, CpuAttention(blocks, batch, narrow=narrow), rows)
