"""The index arrays of one step, built once and used by every layer. Only arithmetic."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.interface import Chunk

# Query tokens that one task of the attention kernel handles: enough to reuse each key
# from cache, few enough that a prompt becomes many tasks.
TILE_TOKENS = 16

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Batch:
    """Chunks back to back, as one packed row of `num_tokens` tokens.

    `tiles` are runs of at most so many tokens of one chunk: its block table's row,
    the first token's index in the packed row, how many tokens, the first position.
    """

    token_ids: Ints  # [num_tokens]
    positions: Ints  # [num_tokens]
    slot_mapping: Ints  # [num_tokens], block number x block_size + offset in it
    block_tables: Ints  # [num_chunks, longest table]
    tiles: Ints  # [num_tiles, 4]
    last_rows: Ints  # [num_sampled], the packed index of each sampling chunk's end

    @property
    def sampled_tiles(self) -> Ints:
        """The tiles in which some row is sampled."""
        if len(self.last_rows) == len(self.token_ids):
            return self.tiles
        starts, counts = self.tiles[:, 1], self.tiles[:, 2]
        before = np.searchsorted(self.last_rows, starts)
        return self.tiles[np.searchsorted(self.last_rows, starts + counts) > before]

    @property
    def tiles_by_cost(self) -> Ints:
        """A late tile reads more keys; a GPU's kernel takes the last ones first."""
        return self.tiles[np.argsort(self.tiles[:, 3], kind="stable")]


def pack(
    chunks: Sequence[Chunk], block_size: int, tile_tokens: int = TILE_TOKENS
) -> Batch:
    """Lay the chunks out for one forward pass, in tiles of at most `tile_tokens`."""
    if all(len(chunk.token_ids) == 1 for chunk in chunks):
        return _single_tokens(chunks, block_size)
    lengths = np.array([len(chunk.token_ids) for chunk in chunks], np.int64)
    computed = np.array([chunk.num_computed_tokens for chunk in chunks], np.int64)
    ends = np.cumsum(lengths)
    block_tables = _block_tables(chunks, computed + lengths, block_size)
    chunk_of = np.repeat(np.arange(len(chunks)), lengths)
    positions = np.arange(len(chunk_of)) + (computed - ends + lengths)[chunk_of]
    blocks, offsets = np.divmod(positions, block_size)
    sampling = [chunk.sample_index is not None for chunk in chunks]
    return Batch(
        token_ids=np.concatenate([_ints(chunk.token_ids) for chunk in chunks]),
        positions=positions,
        slot_mapping=block_tables[chunk_of, blocks] * block_size + offsets,
        block_tables=block_tables,
        tiles=_tiles(lengths, ends - lengths, computed, tile_tokens),
        last_rows=(ends - 1)[sampling],
    )


def _single_tokens(chunks: Sequence[Chunk], block_size: int) -> Batch:
    """A step of decode, with as little code as can be: between two steps the caches are
    empty, and each function of numpy has to be read from memory again.
    """
    positions = [chunk.num_computed_tokens for chunk in chunks]
    blocks, offsets = zip(*(divmod(at, block_size) for at in positions), strict=True)
    width = max(blocks) + 1
    tables = [
        [*chunk.block_table[: last + 1], *[0] * (width - last - 1)]
        for chunk, last in zip(chunks, blocks, strict=True)
    ]
    slots = [
        table[last] * block_size + offset
        for table, last, offset in zip(tables, blocks, offsets, strict=True)
    ]
    rows = range(len(chunks))
    tiles = [(row, row, 1, positions[row]) for row in _cheap_beside_dear(positions)]
    return Batch(
        token_ids=_ints([chunk.token_ids[0] for chunk in chunks]),
        positions=_ints(positions),
        slot_mapping=_ints(slots),
        block_tables=_ints(tables),
        tiles=_ints(tiles),
        last_rows=_ints([r for r in rows if chunks[r].sample_index is not None]),
    )


def _ints(values: Sequence[int] | Sequence[Sequence[int]]) -> Ints:
    return np.asarray(values, np.int64)


def _block_tables(chunks: Sequence[Chunk], reached: Ints, block_size: int) -> Ints:
    """The tables as far as this step reaches; a sequence may own blocks beyond."""
    needed = -(-reached // block_size)
    tables = np.zeros((len(chunks), int(needed.max())), np.int64)
    for row, chunk, count in zip(tables, chunks, needed, strict=True):
        row[:count] = chunk.block_table[:count]
    return tables


def _tiles(lengths: Ints, starts: Ints, computed: Ints, tile_tokens: int) -> Ints:
    counts = -(-lengths // tile_tokens)
    chunk_of = np.repeat(np.arange(len(lengths)), counts)
    tile_in_chunk = np.arange(len(chunk_of)) - (np.cumsum(counts) - counts)[chunk_of]
    before = tile_in_chunk * tile_tokens
    sizes = np.minimum(lengths[chunk_of] - before, tile_tokens)
    tiles = np.stack(
        (chunk_of, starts[chunk_of] + before, sizes, computed[chunk_of] + before),
        axis=1,
    )
    return tiles[_cheap_beside_dear(tiles[:, 3].tolist())]


def _cheap_beside_dear(costs: Sequence[int]) -> list[int]:
    """An order in which every contiguous run of tasks costs about the same.

    The kernel's threads get contiguous runs, and a late tile reads more keys.
    """
    order = ranked = sorted(range(len(costs)), key=costs.__getitem__)
    half = (len(ranked) + 1) // 2
    order[0::2], order[1::2] = ranked[:half], ranked[half:][::-1]
    return order
