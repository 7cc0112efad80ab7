"""The tokens of a step and where they belong, as arrays, and as numbers for kernels."""

from typing import Any, NamedTuple

import numpy as np
from numba import carray, types

from engine.batch import Batch
from engine.blocks import KVBlocks
from engine.compiled import compiled, inlined
from engine.vectors import pointer_to

Array = Any
NUM_PLACE_NUMBERS, _TILE_NUMBERS = 18, 4
_numbers_at, _halves_at = pointer_to(types.int64), pointer_to(types.uint16)


class Place(NamedTuple):
    """Of one step; int64, as `engine.batch.Batch`. And how many threads compute it."""

    memory: Array  # [num_blocks, bytes of a block / 2], uint16
    block_size: int
    token_ids: Array
    slot_mapping: Array
    block_tables: Array
    tiles: Array
    sampled_tiles: Array
    last_rows: Array
    num_threads: int


_NO_INDEX, _NO_TABLE = np.zeros(0, np.int64), np.zeros((0, 0), np.int64)
NOWHERE = Place(
    np.zeros((0, 0), np.uint16),
    1,
    _NO_INDEX,
    _NO_INDEX,
    _NO_TABLE,
    _NO_TABLE,
    _NO_TABLE,
    _NO_INDEX,
    1,
)


def place_of(batch: Batch, blocks: KVBlocks, num_threads: int) -> Place:
    """A step's tokens, and the blocks where they belong, as kernels see them."""
    return Place(
        blocks.memory.view(np.uint16),
        blocks.block_size,
        batch.token_ids,
        batch.slot_mapping,
        batch.block_tables,
        batch.tiles,
        batch.sampled_tiles,
        batch.last_rows,
        num_threads,
    )


@compiled()
def describe(place: Place, numbers: Array) -> None:
    """Write where all of it lies, in NUM_PLACE_NUMBERS int64. Keeps nothing alive."""
    memory, tables = place.memory, place.block_tables
    numbers[0] = memory.ctypes.data
    numbers[1], numbers[2] = memory.shape
    numbers[3], numbers[4] = place.block_size, place.num_threads
    numbers[5], numbers[6] = place.token_ids.ctypes.data, len(place.token_ids)
    numbers[7], numbers[8] = place.slot_mapping.ctypes.data, len(place.slot_mapping)
    numbers[9] = tables.ctypes.data
    numbers[10], numbers[11] = tables.shape
    numbers[12], numbers[13] = place.tiles.ctypes.data, len(place.tiles)
    sampled = place.sampled_tiles
    numbers[14], numbers[15] = sampled.ctypes.data, len(sampled)
    numbers[16], numbers[17] = place.last_rows.ctypes.data, len(place.last_rows)


@inlined
def place_at(address: int) -> Place:
    """What `describe` wrote there."""
    n = carray(_numbers_at(address), NUM_PLACE_NUMBERS)
    return Place(
        carray(_halves_at(n[0]), (n[1], n[2])),
        n[3],
        carray(_numbers_at(n[5]), n[6]),
        carray(_numbers_at(n[7]), n[8]),
        carray(_numbers_at(n[9]), (n[10], n[11])),
        carray(_numbers_at(n[12]), (n[13], _TILE_NUMBERS)),
        carray(_numbers_at(n[14]), (n[15], _TILE_NUMBERS)),
        carray(_numbers_at(n[16]), n[17]),
        n[4],
    )
