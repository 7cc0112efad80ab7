"""Decode steps as CUDA graphs: of each number of sequences one, captured once.

A graph runs a step of up to so many sequences; rows that are not taken write nothing and
see nothing. It also finds each row's most likely token, so that a greedy step brings no
logits to the host. A graph keeps to the multiprocessors of the stream it was captured on.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from engine.cuda import DecodeAttention, DeviceBlocks
from engine.forward import Forward
from engine.interface import Chunk

_WARM_UPS = 2  # compile the kernels, and let libraries make their workspaces
_NOWHERE = -1  # a slot that nothing is written to


def buckets(max_num_seqs: int) -> list[int]:
    """Numbers of sequences that get a graph: few of them, none much too large."""
    fine = [1, 2, 4, 8, 12, *range(16, 64, 8), *range(64, 256, 16)]
    coarse = range(256, max(max_num_seqs, 256), 64)
    return [n for n in [*fine, *coarse] if n < max_num_seqs] + [max_num_seqs]


class Graphs:
    """The graphs of one stream, which is current whenever this is used."""

    def __init__(
        self,
        forward: Forward,
        blocks: DeviceBlocks,
        max_num_seqs: int,
        table_width: int,
        num_sms: int,
    ) -> None:
        """`table_width`: blocks of the longest sequence; the stream has `num_sms`."""
        self._forward = forward
        self._blocks = blocks
        self._num_sms = num_sms
        self._width = table_width
        self._buckets = buckets(max_num_seqs)
        self._graphs: dict[int, Graph] = {}
        self.reason = ""  # why there are no graphs; empty while there are
        self._pool = torch.cuda.graph_pool_handle()

    def suit(self, chunks: Sequence[Chunk]) -> bool:
        """Whether they are one token of each of so many sequences at most."""
        if len(chunks) > self._buckets[-1] or self.reason:
            return False
        return all(len(chunk.token_ids) == 1 for chunk in chunks)

    def replay(self, chunks: Sequence[Chunk]) -> tuple[Tensor, Tensor]:
        """Logits [num_rows, vocab_size] and each row's most likely token [num_rows].

        Overwritten by the next replay.
        """
        num_rows = len(chunks)
        bucket = next(size for size in self._buckets if size >= num_rows)
        logits, tokens = self._graph(bucket).replay(chunks)
        return logits[:num_rows], tokens[:num_rows]

    def capture_all(self) -> None:
        """Largest first: the smaller ones then fit into its memory.

        A model that waits for the GPU in the middle of a step cannot be captured: some
        choose their experts on the host. It goes on without graphs, and `reason` says so.
        """
        try:
            for size in reversed(self._buckets):
                self._graph(size)
        except RuntimeError as error:
            self.reason = str(error).partition("\n")[0]
            self._graphs.clear()

    def _graph(self, size: int) -> "Graph":
        if size not in self._graphs:
            block_size = self._blocks.layers[0].block_size
            rows = Rows(size, self._width, block_size, self._blocks.memory.device)
            attention = rows.attention(self._blocks, self._num_sms)
            self._graphs[size] = Graph(self._forward, attention, rows, self._pool)
        return self._graphs[size]


class Rows:
    """The inputs of a step of so many rows, on the device and pinned on the host."""

    def __init__(
        self, num_rows: int, table_width: int, block_size: int, device: torch.device
    ) -> None:
        self._block_size = block_size
        self._staged = _staging(device, 4, num_rows)
        self._staged_tables = _staging(device, num_rows, table_width)
        self._values = self._staged.numpy()
        self._table_values = self._staged_tables.numpy()
        # Of each row the table that it has there, and how many blocks of it.
        self._known: list[tuple[Sequence[int], int]] = [((), 0)] * num_rows
        self._inputs = torch.zeros_like(self._staged, device=device)
        self.tables = torch.zeros_like(self._staged_tables, device=device)
        self.token_ids, self.positions, self.slots, self.lengths = self._inputs
        self.slots.fill_(_NOWHERE)
        self.all = torch.arange(num_rows, device=device)

    def attention(self, blocks: DeviceBlocks, num_sms: int) -> DecodeAttention:
        return DecodeAttention(blocks, self.slots, self.tables, self.lengths, num_sms)

    def take(self, chunks: Sequence[Chunk]) -> None:
        """Send chunks of one token; rows beyond them are padding.

        What was sent the last time must have arrived.
        """
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
            self._take_table(row, chunk)

    def _slot(self, chunk: Chunk) -> int:
        block, offset = divmod(chunk.num_computed_tokens, self._block_size)
        return chunk.block_table[block] * self._block_size + offset

    def _take_table(self, row: int, chunk: Chunk) -> None:
        """What it lacks of a sequence's table, which only ever grows."""
        table, known = self._known[row]
        if table is not chunk.block_table:
            known = 0
        needed = chunk.num_computed_tokens // self._block_size + 1
        if known < needed:
            new = slice(known, needed)
            self._table_values[row, new] = chunk.block_table[new]
            self.tables[row, new].copy_(
                self._staged_tables[row, new], non_blocking=True
            )
            self._known[row] = chunk.block_table, needed


class Graph:
    """One captured step."""

    def __init__(
        self,
        forward: Forward,
        attention: DecodeAttention,
        rows: Rows,
        pool: Any,  # torch's name for memory that graphs share
    ) -> None:
        self._rows = rows
        stream = torch.cuda.current_stream()
        with torch.inference_mode():
            for _ in range(_WARM_UPS):
                _step(forward, attention, rows)
            stream.synchronize()
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, pool=pool, stream=stream):
                self._answer = _step(forward, attention, rows)

    def replay(self, chunks: Sequence[Chunk]) -> tuple[Tensor, Tensor]:
        self._rows.take(chunks)
        self._graph.replay()
        return self._answer


def _step(
    forward: Forward, attention: DecodeAttention, rows: Rows
) -> tuple[Tensor, Tensor]:
    token_ids, positions = rows.token_ids.unsqueeze(0), rows.positions.unsqueeze(0)
    logits = forward.run(token_ids, positions, attention, rows.all)
    return logits, logits.argmax(dim=-1)


def _staging(device: torch.device, *shape: int) -> Tensor:
    """On the host, where a GPU's copies can read it while the host goes on."""
    return torch.zeros(shape, dtype=torch.int32, pin_memory=device.type == "cuda")
