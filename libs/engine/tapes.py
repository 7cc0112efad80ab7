"""Which step has a tape: each kind of step gets one, recorded and proved when it first comes."""

from typing import NamedTuple

import torch
from torch import Tensor

from engine.batch import Batch
from engine.blocks import KVBlocks
from engine.cpu import CpuAttention
from engine.forward import Forward
from engine.modules import FEW_ROWS
from engine.packing import is_ours
from engine.recorder import Recorder, Unrecordable
from engine.sampled import sampled_logits
from engine.sizes import Sizes
from engine.tape import Tape
from engine.threads import Threads
from protocol.memory import KVGeometry

# Of the logits' norm. A tape does the very same arithmetic: what differs is an error.
_TOLERANCE = 1e-3


class _Kind(NamedTuple):
    """Steps that compute the same operations."""

    is_long: bool  # more tokens than FEW_ROWS
    is_wide: bool  # more sampled ones


_RECORDED = {
    _Kind(False, False): Sizes(31, 29),
    _Kind(True, False): Sizes(67, 31),
    _Kind(True, True): Sizes(127, 61),
}


class Tapes:
    """Logits by the tape of a step, or by the model where there is none."""

    def __init__(
        self,
        forward: Forward,
        recorder: Recorder,
        geometry: KVGeometry,
        threads: Threads,
    ) -> None:
        self._forward = forward
        self._recorder = recorder
        self._geometry = geometry
        self._threads = threads
        self._tapes: dict[_Kind, Tape | None] = {}
        self.reason = ""  # why steps seen so far have no tape; empty where they have

    def logits(self, batch: Batch, blocks: KVBlocks) -> Tensor:
        """Of the sampled rows, writing K/V into `blocks`."""
        num_tokens, num_sampled = len(batch.token_ids), len(batch.last_rows)
        kind = _Kind(num_tokens > FEW_ROWS, num_sampled > FEW_ROWS)
        if tape := self._tapes.get(kind):
            return tape.replay(batch, blocks, self._threads)
        expected = self._by_modules(batch, blocks)
        # No or broken numbers prove nothing: another step may.
        proves = num_sampled > 0 and bool(expected.isfinite().all())
        if kind not in self._tapes and (is_ours() or not kind.is_long) and proves:
            self._tapes[kind] = self._proved(kind, batch, blocks, expected)
        return expected

    def _by_modules(self, batch: Batch, blocks: KVBlocks) -> Tensor:
        if len(batch.token_ids) > FEW_ROWS:
            return sampled_logits(self._forward, self._recorder, batch, blocks)
        rows = torch.from_numpy(batch.last_rows)
        return self._forward(batch, CpuAttention(blocks, batch), rows)

    def _proved(
        self,
        kind: _Kind,
        batch: Batch,
        blocks: KVBlocks,
        expected: Tensor,
    ) -> Tape | None:
        """A tape that was recorded with other numbers and answers these as expected."""
        try:
            tape = Tape.record(
                self._forward,
                self._recorder,
                self._geometry,
                _RECORDED[kind],
                narrows=kind.is_long,
            )
            found = tape.replay(batch, blocks, self._threads).float()
        except Unrecordable as error:
            # A mixture of experts chooses them in Python, for instance.
            self.reason = f"a step depends on more than numbers: {error}"
            return None
        except RuntimeError as error:  # torch, of a size that was taken for another
            self.reason = f"a recorded step has other sizes: {error}"
            return None
        difference = (found - expected.float()).norm()
        if difference <= _TOLERANCE * expected.float().norm():
            return tape
        self.reason = "a recorded step answered other than the model"
        return None
