"""What a captured step reads: its rows, their slots and their tables, without a GPU."""

from itertools import pairwise

import torch
from triton_device import DEVICE

from engine.graphs import TOKENS, Packed, Rows, Sizes, buckets
from engine.interface import Chunk
from protocol.sampling import SamplingParams

GREEDY = SamplingParams(temperature=0.0, max_tokens=1)


def token(token_id: int, position: int, table: list[int]) -> Chunk:
    return Chunk([token_id], position, table, GREEDY, 0)


def rows(num_rows: int = 3) -> Rows:
    return Rows(num_rows, 6, block_size=4, device=torch.device(DEVICE))


def test_a_step_arrives_and_the_rest_is_padding() -> None:
    """
    Rows that are not taken write to no slot and see no key.
    """
    step = rows()

    step.take([token(7, 5, [3, 2]), token(8, 0, [5])])

    assert step.token_ids.tolist() == [7, 8, 0]
    assert step.positions.tolist() == [5, 0, 0]
    assert step.slots.tolist() == [9, 20, -1]
    assert step.lengths.tolist() == [6, 1, 0]
    assert step.tables[:, :2].tolist() == [[3, 2], [5, 0], [0, 0]]


def test_a_table_s_new_blocks_follow() -> None:
    """
    A sequence that grew into its next block is found there.
    """
    step, table = rows(), [3]
    step.take([token(7, 3, table)])

    table.append(1)
    step.take([token(7, 4, table)])

    assert step.slots.tolist() == [4, -1, -1]
    assert step.tables[0, :2].tolist() == [3, 1]


def test_a_row_that_another_sequence_takes_gets_its_table() -> None:
    """
    When a sequence leaves, the next one moves up to its row with its own blocks.
    """
    step, one, other = rows(), [3, 4], [1, 2]
    step.take([token(7, 6, one), token(8, 6, other)])

    step.take([token(8, 7, other)])

    assert step.tables[0, :2].tolist() == [1, 2]
    assert step.lengths.tolist() == [8, 0, 0]


def test_an_equal_table_of_another_sequence_is_no_reason_to_trust_it() -> None:
    """
    Two sequences whose tables begin alike are told apart by the lists themselves.
    """
    step = rows(1)
    step.take([token(7, 9, [3, 4, 5])])

    step.take([token(8, 9, [3, 4, 0])])

    assert step.tables[0, :3].tolist() == [3, 4, 0]


def test_a_step_with_a_prompt_arrives_among_padding() -> None:
    """
    Tokens beyond it write to no slot, tiles before it have no token, and the rows that draw
    come first.
    """
    sizes = Sizes(max_num_seqs=3, table_width=6, tile=2, num_sms=132)
    step = Packed(8, sizes, block_size=4, device=torch.device(DEVICE))
    prompt = Chunk([5, 6, 7], 0, [3], GREEDY, None)

    drawn = step.take([token(9, 4, [1, 2]), prompt])

    inputs = step.inputs
    assert drawn == slice(1)
    assert inputs.rows.tolist() == [0, 0, 0]
    assert inputs.token_ids.tolist() == [9, 5, 6, 7, 0, 0, 0, 0]
    assert inputs.positions.tolist() == [4, 0, 1, 2, 0, 0, 0, 0]
    assert inputs.slot_mapping.tolist() == [8, 12, 13, 14, -1, -1, -1, -1]
    assert inputs.tiles[:4].tolist() == [[0, 0, 0, 0]] * 4
    assert inputs.tiles[4:].tolist() == [[1, 1, 2, 0], [1, 3, 1, 2], [0, 0, 1, 4]]
    assert inputs.block_tables[:, :2].tolist() == [[1, 2], [3, 0], [0, 0]]


def test_a_smaller_step_leaves_nothing_of_the_one_before() -> None:
    """
    What a larger step had sent is padding in the next one.
    """
    sizes = Sizes(max_num_seqs=2, table_width=2, tile=4, num_sms=132)
    step = Packed(8, sizes, block_size=4, device=torch.device(DEVICE))
    step.take([Chunk([5, 6, 7, 8, 9, 3], 0, [3, 0], GREEDY, 0)])

    step.take([Chunk([4], 4, [2, 1], GREEDY, 0)])

    assert step.token_ids.tolist() == [4, *[0] * 7]
    assert step.inputs.slot_mapping.tolist() == [4, *[-1] * 7]
    assert step.inputs.tiles.tolist() == [*[[0, 0, 0, 0]] * 3, [0, 0, 1, 4]]


def test_every_tile_of_a_step_has_a_place() -> None:
    """
    Each chunk may end in a tile that is not full.
    """
    sizes = Sizes(max_num_seqs=64, table_width=64, tile=16, num_sms=132)

    for size in TOKENS:
        step = Packed(size, sizes, block_size=16, device=torch.device(DEVICE))
        rest = size
        chunks = []
        for left in reversed(range(min(64, size))):
            count = min(17, rest - left)
            table = list(range(64))
            chunks.append(Chunk([1] * count, 0, table, GREEDY, 0))
            rest -= count
        step.take(chunks)
        assert int((step.inputs.tiles[:, 2]).sum()) == size - rest


def test_buckets_are_few_and_fit() -> None:
    """
    Every number of sequences up to the most has a graph that is not much larger.
    """
    sizes = {most: buckets(most) for most in (1, 7, 64, 300, 1000)}

    for most, found in sizes.items():
        assert found == sorted(set(found))
        assert found[-1] == most
        assert len(found) < 40
        gaps = [b - a for a, b in pairwise(found)]
        assert all(gap <= max(8, b // 4) for gap, b in zip(gaps, found, strict=False))
