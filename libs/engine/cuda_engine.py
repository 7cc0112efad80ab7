"""The engine on a GPU: long prompts kernel by kernel, other steps as CUDA graphs."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from engine.batch import pack
from engine.configuration import read_configuration
from engine.cuda import CudaAttention, DeviceBlocks, StepInputs
from engine.cuda_modules import speed_up
from engine.device_sampler import sample
from engine.drawing import draw
from engine.forward import Forward
from engine.graphs import Graphs, Sizes
from engine.interface import Chunk, Drawn, Ending
from engine.kernel_choice import choose_kernels, products_of, workspace
from engine.memory import MappedMemory, place
from engine.partition import Lanes
from engine.products import Product
from engine.skeleton import bind, skeleton, views
from engine.triton_tiles import tile_tokens
from protocol.memory import KVGeometry
from protocol.sampling import SamplingParams


@dataclass(frozen=True, slots=True)
class Limits:
    """What steps can grow to."""

    max_num_seqs: int
    max_model_len: int  # tokens
    decodes: bool = True  # steps of one token of each sequence are captured ahead
    prefills: bool = True  # and steps with prompts


class CudaEngine:
    """See `engine.interface.Engine`; holds no sequence and no copy of a weight.

    A step ends when the GPU has done it: what it wrote is there for every process.
    """

    def __init__(
        self,
        forward: Forward,
        blocks: DeviceBlocks,
        graphs: dict[int | None, Graphs],
        lanes: Lanes,
        tile: int,
        geometry: KVGeometry,
    ) -> None:
        self._forward = forward
        self._blocks = blocks
        self._graphs = graphs
        self._lanes = lanes
        self._lane: int | None = None
        self._tile = tile
        self._geometry = geometry
        self._device = blocks.memory.device

    @classmethod
    def build(
        cls, path: Path, memory: MappedMemory, limits: Limits, lanes: Lanes
    ) -> "CudaEngine":
        """Build the model of `path` over weights already loaded and blocks in use.

        Raises EngineError when model and memory do not fit.
        """
        geometry = memory.geometry
        config = read_configuration(path)
        model = skeleton(config, getattr(torch, geometry.dtype))
        bind(model, views(memory.weights, memory.tensors))
        speed_up(model)
        blocks = DeviceBlocks.over(memory.blocks, geometry)
        forward = Forward(model, blocks.memory.device)
        width = geometry.num_blocks(limits.max_model_len)
        heads: int = config.get_text_config().num_attention_heads
        tile = min(tile_tokens(heads, layer.num_kv_heads) for layer in geometry.layers)
        graphs = {
            index: Graphs(
                forward, blocks, Sizes(limits.max_num_seqs, width, tile, num_sms)
            )
            for index, num_sms in lanes.sizes.items()
        }
        engine = cls(forward, blocks, graphs, lanes, tile, geometry)
        engine._capture(limits, products_of(model) if limits.decodes else [])
        return engine

    def turn(self, *, is_long: bool = False) -> AbstractContextManager[object]:
        """The GPU takes steps of all processes as they come."""
        return nullcontext()

    def step(self, chunks: Sequence[Chunk]) -> list[Drawn | None]:
        """Compute all chunks in one pass and write their K/V (see `Engine.step`)."""
        if ending := self.begin(chunks):
            return ending()
        return self._by_kernels(chunks, self._blocks)

    def begin(self, chunks: Sequence[Chunk]) -> Ending | None:
        """Start a graph (see `Engine.begin`); long prompts are started kernel by kernel."""
        stream, graphs = self._lanes.stream(self._lane), self._graphs[self._lane]
        if not graphs.suit(chunks):
            return None
        with torch.cuda.stream(stream), torch.inference_mode():
            logits, greedy = graphs.replay(chunks)
        return partial(_drawn, stream, logits, greedy, chunks)

    def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        """Copy whole KV blocks, (from, to)."""
        stream = self._lanes.stream(self._lane)
        with torch.cuda.stream(stream):
            for source, target in copies:
                self._blocks.copy(source, target)
        stream.synchronize()

    def share(self, percent: int, num_peers: int) -> None:
        """Keep to the lane nearest to that (see `Engine.share`); peers have it together."""
        self._lane = self._lanes.nearest(percent)

    @property
    def computes_on(self) -> str:
        sizes = self._lanes.sizes
        return f"{sizes[self._lane]} of {sizes[None]} SMs"

    def warm_up(self) -> None:
        """Compile the kernels and touch every weight, over blocks of our own."""
        params = SamplingParams(temperature=1.0, max_tokens=1)
        scratch = DeviceBlocks.scratch(2, self._geometry, self._device)
        self._by_kernels([Chunk([0, 0], 0, [0], params, 0)], scratch)

    @property
    def places(self) -> dict[str, range]:
        """The addresses of each weight and of all blocks."""
        tensors = {**self._forward.weights, "blocks": self._blocks.memory}
        return {name: place(tensor) for name, tensor in tensors.items()}

    @property
    def without_graphs(self) -> str:
        """Why all steps run kernel by kernel; empty where graphs hold them."""
        return next((each.reason for each in self._graphs.values()), "")

    def _capture(self, limits: Limits, products: Sequence[Product]) -> None:
        """Of each lane its graphs, with what is fastest there of these products."""
        sizes = self._lanes.sizes
        space = workspace(products, sizes.values(), self._device)
        torch.cuda.synchronize()  # streams of lanes wait for no other
        # The whole GPU's last: what is chosen there, steps without a graph take too.
        for index, graphs in reversed(self._graphs.items()):
            with torch.cuda.stream(self._lanes.stream(index)):
                with torch.inference_mode():
                    choose_kernels(products, space, sizes[index])
                graphs.capture_all(decodes=limits.decodes, prefills=limits.prefills)

    def _by_kernels(
        self, chunks: Sequence[Chunk], blocks: DeviceBlocks
    ) -> list[Drawn | None]:
        stream = self._lanes.stream(self._lane)
        with torch.cuda.stream(stream), torch.inference_mode():
            logits, greedy = self._computed(chunks, blocks)
        return _drawn(stream, logits, greedy, chunks)

    def _computed(
        self, chunks: Sequence[Chunk], blocks: DeviceBlocks
    ) -> tuple[Tensor, Tensor]:
        """Logits of the rows that draw and the most likely token of each, kernel by kernel."""
        batch = pack(chunks, self._geometry.block_size, self._tile)
        inputs = StepInputs.upload(batch, self._device)
        logits = self._forward.run(
            inputs.token_ids.unsqueeze(0),
            inputs.positions.unsqueeze(0),
            CudaAttention(blocks, inputs),
            inputs.rows,
        )
        return logits, logits.argmax(dim=-1)


def _drawn(
    stream: torch.cuda.Stream, logits: Tensor, greedy: Tensor, chunks: Sequence[Chunk]
) -> list[Drawn | None]:
    """What a step on that stream draws, once it has ended."""
    with torch.cuda.stream(stream), torch.inference_mode():
        drawn = draw(logits, chunks, _Choice(greedy).sample)
    stream.synchronize()
    return drawn


class _Choice:
    """Takes a step's most likely tokens where no row asks for more."""

    def __init__(self, greedy: Tensor) -> None:
        self._greedy = greedy

    def sample(
        self,
        logits: Tensor,
        params: Sequence[SamplingParams],
        indices: Sequence[int],
    ) -> list[int]:
        """As `engine.sampler.sample`."""
        if any(
            p.temperature > 0.0 or index < p.min_tokens
            for p, index in zip(params, indices, strict=True)
        ):
            return sample(logits, params, indices)
        tokens: list[int] = self._greedy.tolist()
        return tokens
