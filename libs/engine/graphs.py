"""Steps as CUDA graphs: of each of a few sizes one, captured once.

A graph runs a step of up to so many tokens; rows that are not taken write nothing and see
nothing. It also finds each row's most likely token, so that a greedy step brings no
logits to the host. A graph keeps to the multiprocessors of the stream it was captured on.

Steps of one token of each sequence are graphs by the number of sequences. Steps with a
prompt among them are graphs by the number of tokens, as far as starting their kernels one
by one would take longer than the kernels do; the GPU is busy with larger ones meanwhile.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from engine.attention import PagedAttention
from engine.batch import pack
from engine.cuda import CudaAttention, DecodeAttention, DeviceBlocks, StepInputs
from engine.forward import Forward
from engine.interface import Chunk

_WARM_UPS = 2  # compile the kernels, and let libraries make their workspaces
_NOWHERE = -1  # a slot that nothing is written to
TOKENS = 16, 32, 64, 128, 192, 256, 384, 512  # of steps with a prompt

Drawn = slice | list[int]  # the rows of an answer that draw a token


def buckets(max_num_seqs: int) -> list[int]:
    """Numbers of sequences that get a graph: few of them, none much too large."""
    fine = [1, 2, 4, 8, 12, *range(16, 64, 8), *range(64, 256, 16)]
    coarse = range(256, max(max_num_seqs, 256), 64)
    return [n for n in [*fine, *coarse] if n < max_num_seqs] + [max_num_seqs]


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a stream's steps can grow to."""

    max_num_seqs: int
    table_width: int  # blocks of the longest sequence
    tile: int  # tokens of a tile (see `engine.batch.pack`)
    num_sms: int  # of the stream


class Graphs:
    """The graphs of one stream, which is current whenever this is used."""

    def __init__(self, forward: Forward, blocks: DeviceBlocks, sizes: Sizes) -> None:
        self._forward = forward
        self._blocks = blocks
        self._sizes = sizes
        self._graphs: dict[tuple[type, int], Graph] = {}
        self.reason = ""  # why there are no graphs; empty while there are
        self._pool = torch.cuda.graph_pool_handle()

    def suit(self, chunks: Sequence[Chunk]) -> bool:
        """Whether some graph holds a step of these."""
        if self.reason or len(chunks) > self._sizes.max_num_seqs:
            return False
        return _is_decode(chunks) or _num_tokens(chunks) <= TOKENS[-1]

    def replay(self, chunks: Sequence[Chunk]) -> tuple[Tensor, Tensor]:
        """Logits [num_sampled, vocab_size] and each row's most likely token.

        Overwritten by the next replay.
        """
        if _is_decode(chunks):
            sizes = buckets(self._sizes.max_num_seqs)
            graph = self._decode(_at_least(len(chunks), sizes))
        else:
            graph = self._mixed(_at_least(_num_tokens(chunks), TOKENS))
        return graph.replay(chunks)

    def capture_all(self, *, decodes: bool, prefills: bool) -> None:
        """Largest first: the smaller ones then fit into its memory.

        A model that waits for the GPU in the middle of a step cannot be captured: some
        choose their experts on the host. It goes on without graphs, and `reason` says so.
        """
        try:
            for size in reversed(TOKENS if prefills else ()):
                self._mixed(size)
            for size in reversed(buckets(self._sizes.max_num_seqs) if decodes else ()):
                self._decode(size)
        except RuntimeError as error:
            self.reason = str(error).partition("\n")[0]
            self._graphs.clear()

    def _decode(self, size: int) -> "Graph":
        if (Rows, size) not in self._graphs:
            block_size = self._blocks.layers[0].block_size
            rows = Rows(
                size, self._sizes.table_width, block_size, self._blocks.memory.device
            )
            attention = rows.attention(self._blocks, self._sizes.num_sms)
            self._graphs[Rows, size] = self._captured(attention, rows)
        return self._graphs[Rows, size]

    def _mixed(self, size: int) -> "Graph":
        if (Packed, size) not in self._graphs:
            block_size = self._blocks.layers[0].block_size
            packed = Packed(size, self._sizes, block_size, self._blocks.memory.device)
            attention = CudaAttention(self._blocks, packed.inputs)
            self._graphs[Packed, size] = self._captured(attention, packed)
        return self._graphs[Packed, size]

    def _captured(self, attention: PagedAttention, inputs: "Inputs") -> "Graph":
        return Graph(self._forward, attention, inputs, self._pool)


def _is_decode(chunks: Sequence[Chunk]) -> bool:
    return all(len(chunk.token_ids) == 1 for chunk in chunks)


def _num_tokens(chunks: Sequence[Chunk]) -> int:
    return sum(len(chunk.token_ids) for chunk in chunks)


def _at_least(count: int, sizes: Sequence[int]) -> int:
    return next(size for size in sizes if size >= count)


class Inputs(Protocol):
    """What a captured step reads, on the device."""

    token_ids: Tensor  # [num_tokens]
    positions: Tensor  # [num_tokens]
    rows: Tensor  # the packed tokens whose logits are wanted

    def take(self, chunks: Sequence[Chunk]) -> Drawn:
        """Send a step's chunks; what was sent the last time must have arrived."""


class Tables:
    """Block tables on the device; of each row only what it lacks is sent."""

    def __init__(self, num_rows: int, width: int, device: torch.device) -> None:
        self._staged = _staging(device, num_rows, width)
        self._values = self._staged.numpy()
        # Of each row the table that it has there, and how many blocks of it.
        self._known: list[tuple[Sequence[int], int]] = [((), 0)] * num_rows
        self.there = torch.zeros_like(self._staged, device=device)

    def take(self, row: int, table: Sequence[int], needed: int) -> None:
        """So many blocks of a sequence's table, which only ever grows."""
        had, known = self._known[row]
        if had is not table:
            known = 0
        if known < needed:
            new = slice(known, needed)
            self._values[row, new] = table[new]
            self.there[row, new].copy_(self._staged[row, new], non_blocking=True)
            self._known[row] = table, needed


class Rows:
    """The inputs of a step of one token of each of so many sequences."""

    def __init__(
        self, num_rows: int, table_width: int, block_size: int, device: torch.device
    ) -> None:
        self._block_size = block_size
        self._tables = Tables(num_rows, table_width, device)
        self._staged = _staging(device, 4, num_rows)
        self._values = self._staged.numpy()
        self._inputs = torch.zeros_like(self._staged, device=device)
        self.token_ids, self.positions, self.slots, self.lengths = self._inputs
        self.slots.fill_(_NOWHERE)
        self.rows = torch.arange(num_rows, device=device)

    @property
    def tables(self) -> Tensor:
        """[num_rows, table_width]."""
        return self._tables.there

    def attention(self, blocks: DeviceBlocks, num_sms: int) -> DecodeAttention:
        return DecodeAttention(blocks, self.slots, self.tables, self.lengths, num_sms)

    def take(self, chunks: Sequence[Chunk]) -> Drawn:
        """See `Inputs`. Rows beyond the chunks are padding."""
        num_rows, values = len(chunks), self._values
        positions = [chunk.num_computed_tokens for chunk in chunks]
        values[:, num_rows:] = 0
        values[2, num_rows:] = _NOWHERE
        values[0, :num_rows] = [chunk.token_ids[0] for chunk in chunks]
        values[1, :num_rows] = positions
        values[2, :num_rows] = [self._slot(chunk) for chunk in chunks]
        values[3, :num_rows] = values[1, :num_rows] + 1
        self._inputs.copy_(self._staged, non_blocking=True)
        for row, chunk in enumerate(chunks):
            needed = chunk.num_computed_tokens // self._block_size + 1
            self._tables.take(row, chunk.block_table, needed)
        drawing = [i for i, each in enumerate(chunks) if each.sample_index is not None]
        return slice(num_rows) if len(drawing) == num_rows else drawing

    def _slot(self, chunk: Chunk) -> int:
        block, offset = divmod(chunk.num_computed_tokens, self._block_size)
        return chunk.block_table[block] * self._block_size + offset


class Packed:
    """The inputs of a step of any chunks, of up to so many tokens together."""

    def __init__(
        self, num_tokens: int, sizes: Sizes, block_size: int, device: torch.device
    ) -> None:
        self._block_size, self._tile = block_size, sizes.tile
        self._tables = Tables(sizes.max_num_seqs, sizes.table_width, device)
        num_rows = min(sizes.max_num_seqs, num_tokens)
        num_tiles = num_tokens // sizes.tile + num_rows
        shapes = (
            (num_tokens,),
            (num_tokens,),
            (num_tokens,),
            (num_rows,),
            (num_tiles, 4),
        )
        self._staged = _staging(device, sum(int(np.prod(shape)) for shape in shapes))
        self._there = torch.zeros_like(self._staged, device=device)
        staged, there = _pieces(self._staged, shapes), _pieces(self._there, shapes)
        self._values = [piece.numpy() for piece in staged]
        token_ids, positions, slots, rows, tiles = there
        tables = self._tables.there
        self.inputs = StepInputs(token_ids, positions, slots, rows, tiles, tables)
        self.inputs.slot_mapping.fill_(_NOWHERE)
        self.token_ids, self.positions, self.rows = token_ids, positions, rows

    def take(self, chunks: Sequence[Chunk]) -> Drawn:
        """See `Inputs`. Tokens, rows and tiles beyond the chunks' are padding."""
        batch = pack(chunks, self._block_size, self._tile)
        token_ids, positions, slots, rows, tiles = self._values
        for values, taken, padding in (
            (token_ids, batch.token_ids, 0),
            (positions, batch.positions, 0),
            (slots, batch.slot_mapping, _NOWHERE),
            (rows, batch.last_rows, 0),
            (tiles, batch.tiles_by_cost, 0),
        ):
            # The kernel takes the last tiles first: padding comes after all of them.
            at = len(values) - len(taken) if values is tiles else 0
            values[...] = padding
            values[at : at + len(taken)] = taken
        self._there.copy_(self._staged, non_blocking=True)
        for row, chunk in enumerate(chunks):
            reached = chunk.num_computed_tokens + len(chunk.token_ids)
            self._tables.take(row, chunk.block_table, -(-reached // self._block_size))
        return slice(len(batch.last_rows))


class Graph:
    """One captured step."""

    def __init__(
        self,
        forward: Forward,
        attention: PagedAttention,
        inputs: Inputs,
        pool: Any,  # torch's name for memory that graphs share
    ) -> None:
        self._inputs = inputs
        self._attention = attention  # the graph writes to what it holds
        stream = torch.cuda.current_stream()
        with torch.inference_mode():
            for _ in range(_WARM_UPS):
                _step(forward, attention, inputs)
            stream.synchronize()
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, pool=pool, stream=stream):
                self._answer = _step(forward, attention, inputs)

    def replay(self, chunks: Sequence[Chunk]) -> tuple[Tensor, Tensor]:
        """Of the rows that draw, overwritten by the next replay of any."""
        drawn = self._inputs.take(chunks)
        self._graph.replay()
        logits, tokens = self._answer
        return logits[drawn], tokens[drawn]


def _step(
    forward: Forward, attention: PagedAttention, inputs: Inputs
) -> tuple[Tensor, Tensor]:
    token_ids, positions = inputs.token_ids.unsqueeze(0), inputs.positions.unsqueeze(0)
    logits = forward.run(token_ids, positions, attention, inputs.rows)
    return logits, logits.argmax(dim=-1)


def _pieces(whole: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Views of consecutive runs of it."""
    runs = torch.split(whole, [int(np.prod(shape)) for shape in shapes])
    return [run.view(shape) for run, shape in zip(runs, shapes, strict=True)]


def _staging(device: torch.device, *shape: int) -> Tensor:
    """On the host, where a GPU's copies can read it while the host goes on."""
    return torch.zeros(shape, dtype=torch.int32, pin_memory=device.type == "cuda")
