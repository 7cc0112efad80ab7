"""The engine: a model of transformers over weights and KV blocks that others own."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from engine.batch import pack
from engine.blocks import KVBlocks
from engine.compression import expect_compressed
from engine.configuration import read_configuration
from engine.cores import Cores
from engine.cpu import CpuAttention
from engine.drawing import draw
from engine.forward import ByModules, Forward
from engine.interface import Chunk, Drawn
from engine.laid_out import lay_out
from engine.memory import MappedMemory, place
from engine.modules import FEW_ROWS, speed_up
from engine.packing import is_ours
from engine.quantization import expect_quantized
from engine.recorder import Recorder
from engine.skeleton import bind, skeleton, views
from engine.tapes import Tapes
from engine.threads import Threads
from protocol.memory import KVGeometry
from protocol.sampling import SamplingParams

_PROMPT = FEW_ROWS + 1  # tokens: the least that is computed as a prompt


class TransformerEngine:
    """See `engine.interface.Engine`; holds no sequence and no copy of a weight."""

    def __init__(
        self,
        forward: Forward,
        tapes: Tapes | ByModules,
        blocks: KVBlocks,
        geometry: KVGeometry,
        threads: Threads,
    ) -> None:
        self._forward = forward
        self._tapes = tapes
        self._blocks = blocks
        self._geometry = geometry
        self._threads = threads
        self.private_bytes = 0  # of weights, in another layout

    @classmethod
    def build(
        cls, path: Path, memory: MappedMemory, threads: int, max_private_bytes: int = 0
    ) -> "TransformerEngine":
        """Build the model of `path` over weights already loaded and blocks in use.

        A step computes on at most `threads` cores; 0: on all that this process has. For
        prompts it may keep so many bytes of weights in another layout.
        Raises EngineError when model and memory do not fit.
        """
        model = bound(path, memory)
        return cls.of(model, speed_up(model), memory, threads, max_private_bytes)

    @classmethod
    def of(
        cls,
        model: Any,
        recorder: Recorder,
        memory: MappedMemory,
        threads: int,
        max_private_bytes: int,
    ) -> "TransformerEngine":
        """The same of a bound model with stand-ins; the `recorder` is theirs."""
        geometry, its_threads = memory.geometry, Threads(threads)
        forward = Forward(model, before_layer=its_threads.look)
        tapes: Tapes | ByModules = Tapes(forward, recorder, geometry, its_threads)
        if geometry.dtype == "float32":
            reason = "float32 is computed by transformers' modules"
            tapes = ByModules(forward, CpuAttention, reason)
        blocks = blocks_of(memory)
        engine = TransformerEngine(forward, tapes, blocks, geometry, its_threads)
        engine.private_bytes = 0 if is_ours() else lay_out(model, max_private_bytes)
        return engine

    def compete(self, cores: Cores) -> None:
        """From now on each step takes its cores among those of other processes."""
        self._threads.compete(cores)

    def turn(self, *, is_long: bool = False) -> AbstractContextManager[None]:
        """Take the cores of the next step (see `Engine.turn`)."""
        return self._threads.turn(is_long=is_long)

    def step(self, chunks: Sequence[Chunk]) -> list[Drawn | None]:
        """Compute all chunks in one pass and write their K/V (see `Engine.step`)."""
        return self._step(chunks, self._blocks)

    def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        """Copy whole KV blocks, (from, to)."""
        for source, target in copies:
            self._blocks.copy(source, target)

    def begin(self, chunks: Sequence[Chunk]) -> None:
        """Nothing: it computes where it is asked (see `Engine.begin`)."""

    def share(self, percent: int, num_peers: int) -> None:
        """Leave the rest of the cores to others (see `Engine.share`)."""
        self._threads.share(percent, num_peers)

    @property
    def computes_on(self) -> str:
        return self._threads.in_words

    def warm_up(self) -> None:
        """Compile the kernels, record steps and touch every weight, over other blocks."""
        params = SamplingParams(temperature=0.0, max_tokens=1)
        table = list(range(self._geometry.num_blocks(_PROMPT)))
        prompt = Chunk([0] * _PROMPT, 0, table, params, 0)
        scratch = KVBlocks.scratch(len(table) + 1, self._geometry)
        decode = Chunk([0], 0, [len(table)], params, 0)
        with self.turn():
            self._step([prompt, decode], scratch)
            self._step([decode], scratch)

    @property
    def places(self) -> dict[str, range]:
        """The addresses of each weight and of all blocks."""
        blocks = torch.from_numpy(self._blocks.memory)
        tensors = {**self._forward.weights, "blocks": blocks}
        return {name: place(tensor) for name, tensor in tensors.items()}

    @property
    def max_threads(self) -> int:
        """That a step computes on when no other worker does."""
        return self._threads.limit

    @property
    def without_tapes(self) -> str:
        """Why decode steps go through transformers' modules; empty where tapes do."""
        return self._tapes.reason

    def _step(self, chunks: Sequence[Chunk], blocks: KVBlocks) -> list[Drawn | None]:
        batch = pack(chunks, blocks.block_size)
        return draw(self._tapes.logits(batch, blocks), chunks)


def bound(path: Path, memory: MappedMemory) -> Any:
    """The model of `path` over weights already loaded, with transformers' modules.

    Raises UnsupportedModel.
    """
    model = skeleton(read_configuration(path), getattr(torch, memory.geometry.dtype))
    tensors = views(memory.weights, memory.tensors)
    expect_quantized(model, tensors)
    expect_compressed(model, tensors)
    bind(model, tensors)
    return model


def blocks_of(memory: MappedMemory) -> KVBlocks:
    assert isinstance(memory.blocks, memoryview), "the host's memory"
    return KVBlocks.over(memory.blocks, memory.geometry)
