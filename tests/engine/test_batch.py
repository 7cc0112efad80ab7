"""The index arrays of a step."""

from engine.batch import TILE_TOKENS, pack
from engine.interface import Chunk
from protocol.sampling import SamplingParams

PARAMS = SamplingParams(temperature=0.0, max_tokens=1)


def chunk(size: int, done: int, table: list[int], index: int | None = 0) -> Chunk:
    return Chunk(list(range(size)), done, table, PARAMS, index)


def test_chunks_lie_back_to_back() -> None:
    """Each token keeps its own position and goes to its own slot."""
    batch = pack([chunk(3, 3, [7, 2]), chunk(1, 0, [5])], block_size=4)

    assert batch.token_ids.tolist() == [0, 1, 2, 0]
    assert batch.positions.tolist() == [3, 4, 5, 0]
    assert batch.slot_mapping.tolist() == [7 * 4 + 3, 2 * 4, 2 * 4 + 1, 5 * 4]


def test_only_sampling_chunks_have_a_last_row() -> None:
    """Logits are made for the ends of chunks that sample, in the order of chunks."""
    chunks = [chunk(3, 0, [0]), chunk(2, 0, [1], None), chunk(1, 3, [2])]

    batch = pack(chunks, block_size=4)

    assert batch.last_rows.tolist() == [2, 5]


def test_tables_end_where_the_step_does() -> None:
    """Blocks that a sequence owns for later do not widen the tables."""
    batch = pack([chunk(1, 0, [3, 4, 5, 6]), chunk(1, 4, [8, 9, 10])], block_size=4)

    assert batch.block_tables.tolist() == [[3, 0], [8, 9]]


def test_tiles_cover_every_token_once() -> None:
    """Long chunks are cut into tiles, and no tile spans two chunks."""
    sizes = [2 * TILE_TOKENS + 3, 1, TILE_TOKENS]
    chunks = [chunk(n, 10 * i, list(range(9))) for i, n in enumerate(sizes)]

    batch = pack(chunks, block_size=16)

    starts = {0: 0, 1: sizes[0], 2: sizes[0] + 1}
    covered = []
    for table, start, count, position in batch.tiles.tolist():
        assert position == 10 * table + start - starts[table]
        covered += [(table, start + i) for i in range(count)]
    expected = [(i, starts[i] + j) for i, n in enumerate(sizes) for j in range(n)]
    assert sorted(covered) == expected


def test_halves_of_the_tiles_cost_about_the_same() -> None:
    """Threads take contiguous runs of tiles: none gets all of the late, dear ones."""
    batch = pack([chunk(64 * TILE_TOKENS, 0, list(range(64)))], block_size=16)

    costs = batch.tiles[:, 3]

    assert abs(costs[:32].sum() - costs[32:].sum()) <= 0.05 * costs.sum()


def test_tiles_with_a_sampled_row_are_known() -> None:
    """
    Of each chunk that is sampled the tile of its last token, and none of another chunk.
    """
    chunks = [chunk(5, 0, [0, 1]), chunk(9, 0, [2, 3, 4], None), chunk(1, 7, [5, 6])]

    batch = pack(chunks, 4, tile_tokens=4)

    assert sorted(batch.sampled_tiles.tolist()) == [[0, 4, 1, 4], [2, 14, 1, 7]]


def test_a_step_of_single_tokens_is_laid_out_like_any_other() -> None:
    """
    The short way for decode gives what the general one gives beside a longer chunk.
    """
    single = [
        chunk(1, 5, [7, 2]),
        chunk(1, 0, [5], None),
        chunk(1, 11, [1, 4, 3, 8]),
    ]

    batch = pack(single, block_size=4)
    general = pack([*single, chunk(2, 0, [9])], block_size=4)

    assert batch.token_ids.tolist() == general.token_ids[:3].tolist()
    assert batch.positions.tolist() == general.positions[:3].tolist()
    assert batch.slot_mapping.tolist() == general.slot_mapping[:3].tolist()
    assert batch.block_tables.tolist() == general.block_tables[:3].tolist()
    assert batch.last_rows.tolist() == general.last_rows[:2].tolist()
    assert sorted(batch.tiles.tolist()) == sorted(general.tiles.tolist())[:3]
    assert sorted(batch.sampled_tiles[:, 0].tolist()) == [0, 2]
