"""The engine while kernels are not compiled yet: transformers' modules and plain torch.

Weights that lie in another form than bfloat16 are expanded for each product, and nothing
is kept: its memory is the same as that of the engine that follows it.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from engine.bfloat16_linear import quick_linear
from engine.blocks import KVBlocks
from engine.forward import ByModules, Forward
from engine.interface import Chunk, Drawn
from engine.memory import MappedMemory
from engine.modules import FEW_ROWS, speed_up
from engine.proof import WITHOUT_KERNELS, paged_logits, prove_stand_ins
from engine.reference import ReferenceAttention
from engine.threads import Threads
from engine.transformer import TransformerEngine, blocks_of, bound
from protocol.memory import ModelFacts

REASON = "kernels are being compiled"


class EagerEngine(TransformerEngine):
    """Answers as the model does; `with_kernels` gives the engine that follows it."""

    def __init__(self, path: Path, memory: MappedMemory, threads: int) -> None:
        """Over weights already loaded and blocks in use. Raises UnsupportedModel."""
        # A core is the compiler's: on the same one, a product's other threads would wait.
        its_threads = Threads(max(1, Threads(threads).limit - 1))
        forward = Forward(bound(path, memory), before_layer=its_threads.look)
        by_modules = ByModules(forward, ReferenceAttention, REASON)
        blocks, geometry = blocks_of(memory), memory.geometry
        super().__init__(forward, by_modules, blocks, geometry, its_threads)
        self._all_threads = threads
        # Now: to build one changes torch's default dtype, for all threads.
        self._other = bound(path, memory)
        self._memory = memory

    def with_kernels(
        self, facts: ModelFacts, max_private_bytes: int = 0
    ) -> TransformerEngine:
        """The engine of `TransformerEngine.build`, warm; to be asked for once.

        This one may compute meanwhile, on another thread. Raises UnsupportedModel when
        the other one would not answer as this one does.
        """
        model, geometry = self._other, self._geometry
        expected = paged_logits(model, facts, geometry, WITHOUT_KERNELS)
        recorder = speed_up(model)
        prove_stand_ins(expected, model, facts, geometry, recorder=recorder)
        engine = TransformerEngine.of(
            model, recorder, self._memory, self._all_threads, max_private_bytes
        )
        engine.warm_up()
        if (cores := self._threads.cores) is not None:
            engine.compete(cores)
        return engine

    def alone(self) -> None:
        """Take all cores from the next step on: nobody compiles."""
        self._threads.widen(self._all_threads)

    def _step(self, chunks: Sequence[Chunk], blocks: KVBlocks) -> list[Drawn | None]:
        num_rows = sum(len(chunk.token_ids) for chunk in chunks)
        # Of few rows a step takes half as long again where every call of torch is heard.
        gains = self._geometry.dtype == "bfloat16" and num_rows > FEW_ROWS
        with quick_linear() if gains else nullcontext():
            return super()._step(chunks, blocks)
