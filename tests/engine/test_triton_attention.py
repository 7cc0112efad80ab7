"""The GPU's attention kernels against plain torch in float64, and broken values."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
import triton
import triton.language as tl
import triton_device  # noqa: F401  before any kernel
from torch import Tensor
from triton_device import DEVICE

from engine.attention import ScoreRule
from engine.triton_decode import _piece_of, attend_decode, num_more_pieces
from engine.triton_keys import LayerMemory
from engine.triton_store import store
from engine.triton_tiles import attend_tiles, tile_tokens
from protocol.memory import LayerGeometry

# The interpreter computes by numpy, which warns of what padded rows hold.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

F32, BF16 = torch.float32, torch.bfloat16
# The interpreter cuts bfloat16 where a GPU rounds it.
TOLERANCE = {F32: (1e-5, 1e-5), BF16: (1e-2, 1.6e-2)}
LONG = 8192 if DEVICE == "cuda" else 300
PLAIN = ScoreRule(scaling=0.2)
ALL_RULES = [
    PLAIN,
    ScoreRule(scaling=0.2, window=1),
    ScoreRule(scaling=0.2, window=45),
    ScoreRule(scaling=0.5, softcap=3.0),
    ScoreRule(scaling=0.5, window=70, softcap=3.0),
]


@dataclass(frozen=True)
class Shape:
    """What a layer looks like: heads (of queries, of keys), dims (of keys, values)."""

    heads: tuple[int, int] = (4, 2)
    dims: tuple[int, int] = (16, 16)
    block_size: int = 16
    dtype: torch.dtype = F32


SHAPES = [
    Shape((2, 2), (8, 8), 16, F32),
    Shape((8, 2), (64, 64), 24, F32),
    Shape((7, 1), (80, 80), 64, F32),
    Shape((4, 1), (192, 128), 16, F32),
    Shape((1, 1), (128, 128), 1, BF16),
    Shape((8, 2), (128, 128), 16, BF16),
    Shape((7, 1), (64, 64), 64, BF16),
    Shape((8, 1), (256, 256), 24, BF16),
    Shape((4, 2), (192, 128), 64, BF16),
    Shape((20, 1), (80, 96), 7, BF16),
    Shape((20, 1), (16, 16), 16, F32),
    Shape((130, 1), (8, 8), 16, BF16),
]


@dataclass
class Case:
    """Sequences in scattered blocks, all their K and V stored; the rest is NaN."""

    shape: Shape
    lengths: Sequence[int]
    layer: LayerMemory
    tables: Tensor  # beyond a sequence's end they name a block of NaN
    keys: list[Tensor]  # [length, num_kv_heads, k_head_dim] of each sequence
    values: list[Tensor]
    queries: list[Tensor]

    def slots(self, sequence: int) -> Tensor:
        positions = torch.arange(self.lengths[sequence], device=DEVICE)
        size = self.shape.block_size
        blocks = self.tables[sequence, positions // size].long()
        return blocks * size + positions % size

    def views(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """K and V of a pool like the layer's, [num_blocks, heads, block_size, dim]."""
        size, (_, kv_heads) = self.shape.block_size, self.shape.heads
        of_keys = memory[:, 16 : self.layer.v_offset]
        of_values = memory[:, self.layer.v_offset : -16]
        return (
            of_keys.unflatten(1, (kv_heads, size, -1)),
            of_values.unflatten(1, (kv_heads, size, -1)),
        )

    def fill(self) -> None:
        """Put every token where it belongs."""
        keys, values = self.views(self.layer.memory)
        for i, (key, value) in enumerate(zip(self.keys, self.values, strict=True)):
            slots, size = self.slots(i), self.shape.block_size
            keys[slots // size, :, slots % size] = key
            values[slots // size, :, slots % size] = value

    def tiles_of(self, sequences: Sequence[int], counts: Sequence[int]) -> Tensor:
        """Tiles of the last `counts` tokens of some sequences, packed."""
        step, first, tiles = tile_tokens(*self.shape.heads), 0, []
        for i, count in zip(sequences, counts, strict=True):
            computed = self.lengths[i] - count
            tiles += [
                [i, first + at, min(step, count - at), computed + at]
                for at in range(0, count, step)
            ]
            first += count
        return torch.tensor(tiles, dtype=torch.int32, device=DEVICE)

    def last(self, sequences: Sequence[int], counts: Sequence[int]) -> Tensor:
        pairs = zip(sequences, counts, strict=True)
        return torch.cat([self.queries[i][self.lengths[i] - n :] for i, n in pairs])

    def prompt(self, counts: Sequence[int], rule: ScoreRule) -> Tensor:
        """The last `counts` tokens of all sequences, as a step of prompts."""
        everyone = range(len(self.lengths))
        query = strided(self.last(everyone, counts))
        tiles = self.tiles_of(everyone, counts)
        return attend_tiles(query, self.layer, self.tables, tiles, rule)

    def decode(self, rule: ScoreRule, num_more: int) -> Tensor:
        """The last token of all sequences."""
        query = strided(self.last(range(len(self.lengths)), [1] * len(self.lengths)))
        lengths = torch.tensor(self.lengths, dtype=torch.int32, device=DEVICE)
        arrived = zeros_for(query)
        tables = self.tables
        found = attend_decode(
            query, self.layer, tables, lengths, rule, num_more, arrived
        )
        assert not arrived.any(), "the next layer begins with zeros"
        return found

    def expected(self, counts: Sequence[int], rule: ScoreRule) -> Tensor:
        parts = zip(self.queries, self.keys, self.values, counts, strict=True)
        return torch.cat([plain(q[len(q) - n :], k, v, rule) for q, k, v, n in parts])


def zeros_for(query: Tensor) -> Tensor:
    """Of each head of each sequence, that no piece of it is done."""
    return torch.zeros(query.shape[:2].numel(), dtype=torch.int32, device=DEVICE)


def strided(rows: Tensor) -> Tensor:
    """The same numbers as heads by tokens, each in a wider row."""
    tokens, heads, dim = rows.shape
    wider = rows.new_full((heads, tokens, dim + 16), torch.nan)
    wider[..., :dim] = rows.transpose(0, 1)
    return wider.transpose(0, 1)[..., :dim]


def plain(query: Tensor, keys: Tensor, values: Tensor, rule: ScoreRule) -> Tensor:
    """The last rows of one sequence in float64."""
    count, group = len(keys), query.shape[1] // keys.shape[1]
    keys = keys.double().repeat_interleave(group, 1)
    scores = torch.einsum("qhd,khd->hqk", query.double(), keys) * rule.scaling
    if rule.softcap:
        scores = torch.tanh(scores / rule.softcap) * rule.softcap
    rows = torch.arange(count - len(query), count, device=query.device)
    distance = rows[:, None] - torch.arange(count, device=query.device)
    hidden = distance < 0
    if rule.window:
        hidden |= distance >= rule.window
    weights = scores.masked_fill(hidden, -torch.inf).softmax(dim=-1)
    values = values.double().repeat_interleave(group, 1)
    return torch.einsum("hqk,khd->qhd", weights, values)


def random_case(shape: Shape, lengths: Sequence[int], seed: int = 0) -> Case:
    random = torch.Generator().manual_seed(seed)
    (heads, kv_heads), (k_dim, v_dim) = shape.heads, shape.dims
    needed = [-(-length // shape.block_size) for length in lengths]
    order = torch.randperm(sum(needed) + 3, generator=random).int()
    tables = torch.full((len(lengths), max(needed) + 2), int(order[-1]))
    for row, blocks in zip(tables, order[: sum(needed)].split(needed), strict=True):
        row[: len(blocks)] = blocks
    of_keys = kv_heads * shape.block_size * k_dim
    of_values = kv_heads * shape.block_size * v_dim
    size = len(order), 32 + of_keys + of_values
    geometry = LayerGeometry(num_kv_heads=kv_heads, k_head_dim=k_dim, v_head_dim=v_dim)
    memory = torch.full(size, torch.nan, dtype=shape.dtype, device=DEVICE)
    layer = LayerMemory(memory, shape.block_size, 16, 16 + of_keys, geometry)

    def normal(heads: int, dim: int) -> list[Tensor]:
        rows = torch.randn((sum(lengths), heads, dim), generator=random)
        return list(rows.to(DEVICE, shape.dtype).split(list(lengths)))

    keys, values, queries = (
        normal(kv_heads, k_dim),
        normal(kv_heads, v_dim),
        normal(heads, k_dim),
    )
    tables = tables.to(DEVICE, torch.int32)
    case = Case(shape, lengths, layer, tables, keys, values, queries)
    case.fill()
    return case


def assert_near(found: Tensor, expected: Tensor) -> None:
    atol, rtol = TOLERANCE[found.dtype]
    torch.testing.assert_close(found.double(), expected, atol=atol, rtol=rtol)


# Every shape with two rules, and every rule with four shapes.
SHAPES_AND_RULES = [
    (shape, ALL_RULES[(i + later) % len(ALL_RULES)])
    for i, shape in enumerate(SHAPES)
    for later in (0, 3)
]


@pytest.mark.parametrize(("shape", "rule"), SHAPES_AND_RULES)
def test_prompts_are_attended_as_by_plain_torch(shape: Shape, rule: ScoreRule) -> None:
    """Whole prompts, chunks behind a prefix and single tokens, in one packed row."""
    case = random_case(shape, [1, 33, 64, 130, 97])
    counts = [1, 33, 31, 2, 1]

    found = case.prompt(counts, rule)

    assert_near(found, case.expected(counts, rule))


@pytest.mark.parametrize("num_more", [1, 7])
@pytest.mark.parametrize(("shape", "rule"), SHAPES_AND_RULES)
def test_decode_is_attended_as_by_plain_torch(
    shape: Shape, rule: ScoreRule, num_more: int
) -> None:
    """Contexts that end around blocks and tiles, whole and the longer ones in pieces."""
    case = random_case(shape, [1, 15, 64, 65, 130])

    found = case.decode(rule, num_more)

    assert_near(found, case.expected([1] * 5, rule))


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_a_long_context_is_attended_by_many_programs(dtype: torch.dtype) -> None:
    """Pieces of both long ones, a short one whole, and more programs than pieces."""
    case = random_case(Shape((8, 2), (64, 64), 16, dtype), [LONG, LONG - 1, 7])

    found = case.decode(PLAIN, 33)

    assert_near(found, case.expected([1, 1, 1], PLAIN))


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_a_long_prompt_is_attended_in_a_chunk(dtype: torch.dtype) -> None:
    """A chunk behind a long prefix passes many whole tiles before the diagonal."""
    case = random_case(Shape((4, 1), (64, 64), 16, dtype), [LONG])

    found = case.prompt([LONG // 4], PLAIN)

    assert_near(found, case.expected([LONG // 4], PLAIN))


@pytest.mark.parametrize("shape", [*SHAPES, Shape((4, 3), (24, 40), 5, BF16)])
def test_tokens_are_stored_at_their_slots(shape: Shape) -> None:
    """K and V go where the mapping says, and nothing else in the pool changes."""
    case = random_case(shape, [13, 2])
    expected = case.layer.memory.clone()
    case.layer.memory.fill_(torch.nan)
    slots = torch.cat([case.slots(0), case.slots(1)])
    order = torch.randperm(15, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    keys, values = torch.cat(case.keys)[order], torch.cat(case.values)[order]

    store(case.layer, strided(keys), strided(values), slots[order])

    torch.testing.assert_close(
        case.layer.memory, expected, equal_nan=True, atol=0, rtol=0
    )


def test_a_padding_token_is_not_stored() -> None:
    """A negative slot leaves the pool as it is."""
    case = random_case(Shape(), [9])
    before = case.layer.memory.clone()
    slots = torch.full((9,), -1, device=DEVICE)

    store(case.layer, case.keys[0] + 1, case.values[0] + 1, slots)

    assert torch.equal(case.layer.memory.nan_to_num(9.0), before.nan_to_num(9.0))


@pytest.mark.parametrize("num_more", [1, 4])
def test_a_padding_row_of_decode_is_zero(num_more: int) -> None:
    """Length 0 gives zeros, reads no table, and its neighbours do not notice."""
    case = random_case(Shape(), [40, 70])
    expected = case.expected([1, 1], PLAIN)
    case.tables[0] = 1 << 30
    lengths = torch.tensor([0, 70], dtype=torch.int32, device=DEVICE)
    query = case.last([0, 1], [1, 1])

    found = attend_decode(
        query, case.layer, case.tables, lengths, PLAIN, num_more, zeros_for(query)
    )

    assert not found[0].any()
    assert_near(found[1:], expected[1:])


def test_a_padding_tile_does_nothing() -> None:
    """A tile of no tokens reads no table; the other tiles are as before."""
    case = random_case(Shape(), [70])
    padding = torch.tensor([[1 << 20, 0, 0, 0]], dtype=torch.int32, device=DEVICE)
    tiles = torch.cat([padding, case.tiles_of([0], [70]), padding])

    found = attend_tiles(case.queries[0], case.layer, case.tables, tiles, PLAIN)

    assert_near(found, case.expected([70], PLAIN))


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_blocks_that_left_the_window_are_not_read(dtype: torch.dtype) -> None:
    """What another sequence may have written there by now does not show."""
    rule = ScoreRule(scaling=0.2, window=30)
    case = random_case(Shape(dtype=dtype), [150])
    expected = case.expected([20], rule)
    case.keys[0][: 150 - 20 - 30 + 1] = torch.nan
    case.values[0][: 150 - 20 - 30 + 1] = torch.nan
    case.fill()

    prompt, decode = case.prompt([20], rule), case.decode(rule, 2)

    assert_near(prompt, expected)
    assert_near(decode, expected[-1:])


@pytest.mark.parametrize("num_more", [1, 4])
def test_a_broken_key_shows_in_every_later_row(num_more: int) -> None:
    """A NaN key is not forgotten when later tiles are sound, and no earlier row has it."""
    case = random_case(Shape(), [200, 40])
    case.keys[0][50] = torch.nan
    case.fill()

    prompt, decode = case.prompt([200, 40], PLAIN), case.decode(PLAIN, num_more)

    assert prompt[:50].isfinite().all()
    assert prompt[50:200].isnan().all()
    assert prompt[200:].isfinite().all()
    assert decode[0].isnan().all()
    assert decode[1].isfinite().all()


@pytest.mark.parametrize("group", [1, 3, 4, 7, 64, 71, 200])
def test_a_tile_fills_a_product(group: int) -> None:
    """Tokens times heads of a group come close to 128 rows, with at least one token."""
    tokens = tile_tokens(2 * group, 2)

    assert tokens == 1 or 64 < tokens * group <= 128


@pytest.mark.parametrize(("num_sms", "expected"), [(132, 33), (52, 13), (1, 1)])
def test_pieces_fill_the_gpu(num_sms: int, expected: int) -> None:
    """Two programs for each multiprocessor, and one piece at least."""
    found = num_more_pieces(num_kv_heads=8, num_sms=num_sms)

    assert found == expected


def pieces_of(lengths: Sequence[int], num_more: int, window: int = 0) -> list[int]:
    """Into how many pieces of tiles of 16 keys each sequence is cut, as programs see it."""
    num_programs = len(lengths) + num_more
    found = torch.zeros((num_programs, 3), dtype=torch.int32, device=DEVICE)
    there = torch.tensor(lengths, dtype=torch.int32, device=DEVICE)
    _say_pieces[num_programs,](found, there, len(lengths), num_more, window, window > 0)
    real = found[found[:, 2] > 0].tolist()
    counts = [sum(each == i for each, _, _ in real) for i in range(len(lengths))]
    assert [tuple(row) for row in real] == [
        (i, piece, count) for i, count in enumerate(counts) for piece in range(count)
    ]
    return counts


@triton.jit
def _say_pieces(
    found, lengths, num_sequences, num_more, window, has_window: tl.constexpr
):
    program = tl.program_id(0)
    sequence, piece, count = _piece_of(
        program, lengths, num_sequences, num_more, window, 16, has_window, 8
    )
    tl.store(found + program * 3, sequence)
    tl.store(found + program * 3 + 1, piece)
    tl.store(found + program * 3 + 2, count)


@pytest.mark.parametrize(
    ("lengths", "num_more", "expected"),
    [
        ([16], 4, [1]),
        ([160], 4, [4]),
        ([160, 160, 160], 4, [2, 2, 2]),
        ([64, 4096, 48], 4, [1, 4, 1]),
        ([64, 4096, 48], 33, [1, 32, 1]),
        ([0, 0, 160], 4, [1, 1, 4]),
        ([1, 1, 1], 33, [1, 1, 1]),
    ],
)
def test_the_longer_a_sequence_the_more_pieces(
    lengths: Sequence[int], num_more: int, expected: list[int]
) -> None:
    """A long one among short ones is cut as if it were alone, and they stay whole."""
    found = pieces_of(lengths, num_more)

    assert found == expected


def test_keys_outside_the_window_make_no_pieces() -> None:
    """A sequence counts with what its token sees of it."""
    found = pieces_of([64, 4096], 8, window=64)

    assert found == [4, 4]


def test_an_empty_step_answers_nothing() -> None:
    """No tokens, no launch."""
    case = random_case(Shape(), [9])
    none = case.queries[0][:0]
    tiles = torch.empty((0, 4), dtype=torch.int32, device=DEVICE)

    store(case.layer, case.keys[0][:0], case.values[0][:0], case.slots(0)[:0])
    prompt = attend_tiles(none, case.layer, case.tables, tiles, PLAIN)
    none_arrived = zeros_for(none)
    decode = attend_decode(
        none, case.layer, case.tables, tiles[:, 0], PLAIN, 2, none_arrived
    )

    assert prompt.shape == decode.shape == (0, 4, 16)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
def test_a_recorded_decode_serves_other_lengths() -> None:
    """A CUDA graph recorded with one token in sight answers for whole contexts."""
    case = random_case(Shape((8, 2), (128, 128), 16, BF16), [1000, 37, 500])
    query = case.last([0, 1, 2], [1, 1, 1])
    lengths = torch.ones(3, dtype=torch.int32, device=DEVICE)
    step = (query, case.layer, case.tables, lengths, PLAIN, 8, zeros_for(query))
    attend_decode(*step)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = attend_decode(*step)

    lengths.copy_(torch.tensor(case.lengths, dtype=torch.int32))
    graph.replay()

    assert_near(found, case.expected([1, 1, 1], PLAIN))


def test_a_pool_is_larger_than_32_bits_count() -> None:
    """
    Blocks beyond 2^31 elements are found, though tables and slots of a step are int32.
    A host gives only the pages that are touched.
    """
    small = random_case(Shape((4, 2), (64, 64), 16, BF16), [100])
    elements = small.layer.memory.shape[1]
    num_blocks = (1 << 31) // elements + 100
    memory = torch.empty((num_blocks, elements), dtype=BF16, device=DEVICE)
    tables = num_blocks - 1 - torch.arange(7, dtype=torch.int32, device=DEVICE)[None]
    case = replace(small, layer=replace(small.layer, memory=memory), tables=tables)

    store(case.layer, case.keys[0], case.values[0], case.slots(0).int())
    prompt, decode = case.prompt([100], PLAIN), case.decode(PLAIN, 2)

    assert_near(prompt, case.expected([100], PLAIN))
    assert_near(decode, case.expected([1], PLAIN))
