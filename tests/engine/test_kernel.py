"""The compiled kernel against plain torch, and against broken values."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.attention import ScoreRule, bits
from engine.batch import Batch, pack
from engine.blocks import KVBlocks
from engine.cpu import CpuAttention
from engine.interface import Chunk
from engine.kernel import LayerBlocks, Rule, attend_tile, heads_at_once
from engine.reference import ReferenceAttention
from engine.task import alone
from protocol.memory import PACKED, DType, KVGeometry, LayerGeometry
from protocol.sampling import SamplingParams

LAYER = 1  # the second of two, so that offsets count
NUM_BLOCKS = 160
PARAMS = SamplingParams(temperature=0.0, max_tokens=1)


@dataclass
class Case:
    """Random K and V of two layers, and one step's query, key and value."""

    geometry: KVGeometry
    memory: Tensor
    batch: Batch
    query: Tensor
    key: Tensor
    value: Tensor

    def blocks(self, memory: Tensor) -> KVBlocks:
        buffer = memoryview(memory.flatten().view(torch.uint8).numpy())
        return KVBlocks.over(buffer, self.geometry)

    def answers(self, rule: ScoreRule) -> tuple[Tensor, Tensor]:
        """What the kernel and the reference answer, each over memory of its own."""
        step = (LAYER, self.query, self.key, self.value, rule)
        kernel = CpuAttention(self.blocks(self.memory), self.batch)
        expected = ReferenceAttention(self.blocks(self.memory.clone()), self.batch)
        return kernel.attend(*step).float(), expected.attend(*step).float()


def random_case(
    seed: int,
    dtype: DType,
    heads: tuple[int, int],
    dims: tuple[int, int],
    block_size: int | None = None,
    longest: int = 40,
) -> Case:
    """heads are (of queries, of keys), dims (of keys, of values).

    Four sequences, each with fewer than `longest` tokens computed and as many to come.
    """
    random = torch.Generator().manual_seed(seed)
    any_size = int(torch.randint(3, 20, (), generator=random)) * PACKED[dtype]
    block_size = block_size or any_size
    layer = LayerGeometry(num_kv_heads=heads[1], k_head_dim=dims[0], v_head_dim=dims[1])
    geometry = KVGeometry(layers=(layer, layer), dtype=dtype, block_size=block_size)
    order = torch.randperm(NUM_BLOCKS, generator=random).tolist()
    chunks = []
    for _ in range(4):
        size, done = torch.randint(1, longest, (2,), generator=random).tolist()
        table = [order.pop() for _ in range(geometry.num_blocks(size + done))]
        chunks.append(Chunk([0] * size, done, table, PARAMS, 0))
    batch = pack(chunks, block_size)
    num_tokens = len(batch.positions)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random).to(getattr(torch, dtype))

    return Case(
        geometry,
        normal(NUM_BLOCKS, 2 * sum(layer.num_elements(block_size, PACKED[dtype]))),
        batch,
        normal(num_tokens, heads[0], dims[0]),
        normal(num_tokens, heads[1], dims[0]),
        normal(num_tokens, heads[1], dims[1]),
    )


RULES = [
    ScoreRule(scaling=0.2),
    ScoreRule(scaling=0.2, window=1),
    ScoreRule(scaling=0.2, window=17),
    ScoreRule(scaling=0.5, softcap=3.0),
    ScoreRule(scaling=0.5, window=9, softcap=3.0),
]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("heads", "dims"),
    [((4, 4), (16, 16)), ((8, 2), (24, 24)), ((6, 1), (32, 20)), ((3, 3), (7, 33))],
)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 2e-6), ("bfloat16", 1e-2)]
)
def test_kernel_agrees_with_reference(
    dtype: DType,
    tolerance: float,
    heads: tuple[int, int],
    dims: tuple[int, int],
    rule: ScoreRule,
) -> None:
    """Any chunks, tables, heads, dims and rules: the answer is plain torch's."""
    case = random_case(len(repr(rule)) + dims[1], dtype, heads, dims)

    found, expected = case.answers(rule)

    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("rule", [*RULES, ScoreRule(scaling=0.2, window=200)])
@pytest.mark.parametrize("heads", [(2, 2), (6, 2), (7, 1)])
@pytest.mark.parametrize("dims", [(18, 16), (64, 128), (128, 64)])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 4e-6), ("bfloat16", 1e-2)]
)
def test_blocks_as_wide_as_a_vector_pass_four_at_a_time(
    dtype: DType,
    tolerance: float,
    dims: tuple[int, int],
    heads: tuple[int, int],
    rule: ScoreRule,
) -> None:
    """Any number of rows and blocks, of several runs of keys.

    What is left of both passes as ever: some of the blocks, and those that only a part
    of the rows sees.
    """
    seed = len(repr(rule)) + dims[0]
    case = random_case(seed, dtype, heads, dims, block_size=16, longest=300)

    found, expected = case.answers(rule)

    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("heads", [(1, 1), (2, 1), (3, 1), (4, 1), (7, 1)])
@pytest.mark.parametrize("done", [15, 63, 64, 255, 256, 300, 600])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 4e-6), ("bfloat16", 1e-2)]
)
def test_one_token_sees_all_that_was_computed(
    dtype: DType, tolerance: float, done: int, heads: tuple[int, int]
) -> None:
    """As a decode step does, with as few rows as heads share their keys."""
    case = random_case(done, dtype, heads, (64, 64), block_size=16)
    case.query, case.key, case.value = case.query[:1], case.key[:1], case.value[:1]
    table = list(range(NUM_BLOCKS - 1, NUM_BLOCKS - 2 - done // 16, -1))
    case.batch = pack([Chunk([0], done, table, PARAMS, 0)], 16)

    found, expected = case.answers(ScoreRule(scaling=0.125))

    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("dims", [(18, 16), (64, 64)])
def test_heads_of_one_task_answer_as_each_for_itself(
    dims: tuple[int, int], dtype: DType
) -> None:
    """
    A step of many sequences attends with several KV heads in each task, one of few with
    one: a sequence's answer is the same to the bit, whoever it is computed with.
    """
    case = random_case(1, dtype, (6, 3), dims, block_size=16, longest=300)
    blocks = case.blocks(case.memory)
    offsets = blocks.k_offsets[LAYER], blocks.v_offsets[LAYER]
    layer = LayerBlocks(blocks.memory, blocks.block_size, *offsets)
    query = bits(case.query)
    together, apart = (np.zeros((*query.shape[:2], dims[1]), query.dtype) for _ in "ab")

    def attend(answer: Any, tile: Any, kv_head: int, num_heads: int) -> None:
        table, start, count, position = tile.tolist()
        rows = (
            slice(start, start + count),
            slice(2 * kv_head, 2 * (kv_head + num_heads)),
        )
        paged = layer, case.batch.block_tables[table], (kv_head, num_heads)
        rule = Rule(0.2, 0, 0.0)
        attend_tile(query[rows], answer[rows], paged, position, rule, alone(0))

    for tile in case.batch.tiles:
        attend(together, tile, 1, 2)  # not from the first one on, as tasks may be
        for kv_head in (1, 2):
            attend(apart, tile, kv_head, 1)

    assert together.any()
    assert np.array_equal(together, apart)


@pytest.mark.parametrize(
    ("num_heads", "head_bytes", "num_tiles", "num_threads", "expected"),
    [
        (4, 256, 8, 2, 4),
        (4, 256, 4, 2, 2),  # else a thread would have two tasks
        (4, 256, 1, 2, 1),
        (3, 256, 4, 1, 3),
        (3, 256, 3, 1, 1),  # thirds or all: two do not divide them
        (8, 512, 64, 2, 2),  # more would not stay in cache
    ],
)
def test_a_task_has_as_many_heads_as_leave_enough_tasks(
    num_heads: int, head_bytes: int, num_tiles: int, num_threads: int, expected: int
) -> None:
    """
    Memory is read in a row where a task has several heads; but threads that wait for the
    last task wait longer then, and what is read ahead has to stay in cache.
    """
    found = heads_at_once(num_heads, head_bytes, num_tiles, num_threads)

    assert found == expected


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_kernel_stores_keys_and_values_at_their_slots(dtype: DType) -> None:
    """Memory after a step is the reference's, bit for bit, other layers untouched."""
    case = random_case(5, dtype, (4, 2), (16, 8))
    other = case.memory.clone()
    step = (LAYER, case.query, case.key, case.value, RULES[0])

    CpuAttention(case.blocks(case.memory), case.batch).attend(*step)
    ReferenceAttention(case.blocks(other), case.batch).attend(*step)

    assert torch.equal(case.memory, other)


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_broken_token_spoils_nothing_before_it(dtype: DType, broken: float) -> None:
    """NaN and infinity show in the rows that see them, and in no earlier row."""
    case = random_case(6, dtype, (4, 2), (16, 16))
    last = int(case.batch.last_rows[0])
    case.key[last], case.value[last] = broken, broken

    found, _ = case.answers(ScoreRule(scaling=0.2))

    assert not found[last].isfinite().any()
    assert found[:last].isfinite().all()
    assert found[last + 1 :].isfinite().all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_broken_token_shows_in_every_row_after_it(dtype: DType) -> None:
    """A NaN key is not forgotten when later blocks of keys are sound."""
    case = random_case(1, dtype, (4, 2), (16, 16))
    start, end = 0, int(case.batch.last_rows[0]) + 1
    case.key[start] = torch.nan

    found, _ = case.answers(ScoreRule(scaling=0.2))

    assert end > case.geometry.block_size
    assert found[start:end].isnan().all()
    assert found[end:].isfinite().all()


def test_unwritten_slots_are_never_read() -> None:
    """What an earlier owner left behind a sequence's end does not reach the answer."""
    case = random_case(8, "float32", (4, 2), (16, 16))
    rule = ScoreRule(scaling=0.2)
    expected, _ = case.answers(rule)
    used = torch.zeros(NUM_BLOCKS, case.geometry.block_size, dtype=torch.bool)
    for row in case.batch.last_rows:
        table, end = int((case.batch.last_rows < row).sum()), case.batch.positions[row]
        for position in range(int(end) + 1):
            block, slot = divmod(position, case.geometry.block_size)
            used[case.batch.block_tables[table, block], slot] = True
    keys, values = case.memory.view(NUM_BLOCKS, 2, 2, -1).unbind(2)
    keys.unflatten(2, (2, 16, -1)).permute(0, 4, 1, 2, 3)[~used] = torch.nan
    values.unflatten(2, (2, -1, 16)).permute(0, 3, 1, 2, 4)[~used] = torch.nan

    found, _ = case.answers(rule)

    assert torch.equal(found, expected)


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_broken_token_that_left_the_window_is_forgotten(
    dtype: DType, broken: float
) -> None:
    """Not even a neighbour in the same pair of values brings back what is not seen."""
    case = random_case(6, dtype, (4, 2), (16, 16))
    end = int(case.batch.last_rows[0]) + 1
    case.key[1], case.value[1] = broken, broken

    found, _ = case.answers(ScoreRule(scaling=0.2, window=3))

    assert not found[1:4].isfinite().any()
    assert found[4:end].isfinite().all()
    assert found[0].isfinite().all()
