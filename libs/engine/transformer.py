"""The engine: a model of transformers over weights and KV blocks that others own."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from engine.batch import Batch, pack
from engine.blocks import KVBlocks
from engine.configuration import read_configuration
from engine.cpu import CpuAttention
from engine.forward import Forward
from engine.interface import Chunk, Drawn
from engine.modules import speed_up
from engine.quantization import expect_quantized
from engine.sampler import log_probabilities, sample
from engine.skeleton import bind, skeleton, views
from engine.tape import Tapes
from engine.threads import Threads
from protocol.memory import KVGeometry, TensorSpec
from protocol.sampling import SamplingParams


@dataclass(frozen=True, slots=True)
class MappedMemory:
    """A pool's memory, mapped: one-dimensional views of bytes, and what lies in them."""

    weights: memoryview  # may be read-only
    tensors: Sequence[TensorSpec]
    blocks: memoryview
    geometry: KVGeometry


class TransformerEngine:
    """See `engine.interface.Engine`; holds no sequence and no copy of a weight."""

    def __init__(
        self,
        forward: Forward,
        tapes: Tapes,
        blocks: KVBlocks,
        geometry: KVGeometry,
        threads: Threads,
    ) -> None:
        self._forward = forward
        self._tapes = tapes if geometry.dtype == "bfloat16" else None
        self._blocks = blocks
        self._geometry = geometry
        self._threads = threads

    @classmethod
    def build(
        cls, path: Path, memory: MappedMemory, threads: int
    ) -> "TransformerEngine":
        """Build the model of `path` over weights already loaded and blocks in use.

        A step computes on at most `threads` cores; 0: on all that this process has.
        Raises EngineError when model and memory do not fit.
        """
        geometry = memory.geometry
        model = skeleton(read_configuration(path), getattr(torch, geometry.dtype))
        tensors = views(memory.weights, memory.tensors)
        expect_quantized(model, tensors)
        bind(model, tensors)
        recorder = speed_up(model)
        blocks = KVBlocks.over(memory.blocks, geometry)
        forward = Forward(model)
        tapes = Tapes(forward, recorder, geometry)
        return cls(forward, tapes, blocks, geometry, Threads(threads))

    def step(self, chunks: Sequence[Chunk]) -> list[Drawn | None]:
        """Compute all chunks in one pass and write their K/V (see `Engine.step`)."""
        return self._step(chunks, self._blocks)

    def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        """Copy whole KV blocks, (from, to)."""
        for source, target in copies:
            self._blocks.copy(source, target)

    def share_cores(self, num_computing: int) -> None:
        """Leave a fair part of the cores to others (see `Engine.share_cores`)."""
        self._threads.share(num_computing)

    def warm_up(self) -> None:
        """Compile the kernels and touch every weight, over blocks of our own."""
        params = SamplingParams(temperature=0.0, max_tokens=1)
        prompt = Chunk([0, 0], 0, [0], params, None)
        scratch = KVBlocks.scratch(2, self._geometry)
        decode = Chunk([0], 0, [1], params, 0)
        self._step([prompt, decode], scratch)
        self._step([decode], scratch)

    def _step(self, chunks: Sequence[Chunk], blocks: KVBlocks) -> list[Drawn | None]:
        self._threads.apply()
        batch = pack(chunks, blocks.block_size)
        logits = self._logits(batch, blocks)
        drawn = iter(_draw(logits, [c for c in chunks if c.sample_index is not None]))
        return [None if chunk.sample_index is None else next(drawn) for chunk in chunks]

    def _logits(self, batch: Batch, blocks: KVBlocks) -> Tensor:
        """Of the rows that are sampled."""
        rows = torch.from_numpy(batch.last_rows)
        if self._tapes is None or not self._tapes.suits(batch):
            return self._forward(batch, CpuAttention(blocks, batch), rows)
        logits = self._tapes.logits(batch, blocks, self._threads.count)
        return logits if len(rows) == len(logits) else logits[rows]


def _draw(logits: Tensor, chunks: Sequence[Chunk]) -> list[Drawn]:
    """One token for each row and its chunk."""
    tokens = sample(
        logits,
        [chunk.sampling for chunk in chunks],
        [chunk.sample_index or 0 for chunk in chunks],
    )
    drawn = [Drawn(token) for token in tokens]
    asking = [row for row, chunk in enumerate(chunks) if chunk.sampling.logprobs]
    if asking:
        logprobs = log_probabilities(logits[asking], [tokens[row] for row in asking])
        for row, logprob in zip(asking, logprobs, strict=True):
            drawn[row] = Drawn(tokens[row], logprob)
    return drawn
