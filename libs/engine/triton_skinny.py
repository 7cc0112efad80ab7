"""Products of 5 to 64 rows with a matrix, still at the speed at which memory gives it.

Triton kernels, also run by its interpreter (see `engine.triton_rows`). The weight is the
left operand of the tensor cores, which want 64 rows and more of that side; the few rows of
inputs are the right one. Where a matrix has fewer tiles than the GPU could load at a time,
several programs share the inputs of a tile: each leaves its sums, and the last one to come
adds them up, always in the same order. How many follows from the shape and from the
multiprocessors that there are; which tile is fastest is measured elsewhere.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.triton_linear import Form, as_rows
from engine.triton_rows import Activation, gated

MAX_ROWS = 64
# The interpreter holds bfloat16 as 16-bit integers, and would multiply these.
_UPCAST = bool(triton.knobs.runtime.interpret)
ROWS = (8, 16, 32, 64)  # what kernels are made for; other numbers take the next


class Shape(NamedTuple):
    """Of a product."""

    outputs: int
    inputs: int
    rows: int  # of ROWS
    num_weights: int = 1  # two where outputs are of gates and ups


class Tile(NamedTuple):
    """What a program computes: so many outputs, from so many inputs at a time."""

    outputs: int
    inputs: int
    num_stages: int  # tiles of the weight that are on their way together
    num_warps: int
    num_splits: int = 1  # programs that share the inputs of a tile

    def shared_bytes(self, shape: Shape) -> int:
        """Of the multiprocessor's memory, which one program takes at most."""
        width = self.outputs * shape.num_weights + shape.rows
        return self.num_stages * self.inputs * width * 2 + _RESERVED_BYTES

    def num_tiles(self, shape: Shape) -> int:
        return triton.cdiv(shape.outputs, self.outputs)

    def num_sums(self, shape: Shape) -> int:
        """That programs leave for the last one: none where each has a tile of its own."""
        if self.num_splits == 1:
            return 0
        outputs = self.num_tiles(shape) * self.outputs * shape.num_weights
        return self.num_splits * outputs * shape.rows


# Of 49 that an H200 measured, over the products of an 8B model, all four numbers of rows,
# all of the GPU and 52 of its multiprocessors: the fastest of these, split as `tiles` does,
# takes 1 % longer than the best of all, at most 6 %.
TILES = (Tile(64, 64, 6, 4), Tile(64, 128, 4, 4), Tile(128, 64, 4, 4))
_MAX_SPLITS = 4
_START = 2048  # inputs that could be summed while a program starts and ends
_RESERVED_BYTES = 1024  # of each program, for the driver


def tiles(shape: Shape, num_sms: int, sm_bytes: int) -> list[Tile]:
    """Those that fit, each split as is best for so many multiprocessors.

    `sm_bytes`: shared memory of a multiprocessor.
    """
    slots = {tile: sm_bytes // tile.shared_bytes(shape) * num_sms for tile in TILES}
    return [_split(tile, shape, slots[tile]) for tile in TILES if slots[tile]]


def _split(tile: Tile, shape: Shape, num_slots: int) -> Tile:
    """Split so that rounds of programs, `num_slots` at a time, end earliest."""

    def end(num_splits: int) -> int:
        num_programs = tile.num_tiles(shape) * num_splits
        num_rounds = triton.cdiv(num_programs, num_slots)
        num_pieces = triton.cdiv(triton.cdiv(shape.inputs, tile.inputs), num_splits)
        return num_rounds * (num_pieces * tile.inputs + _START)

    return tile._replace(num_splits=min(range(1, _MAX_SPLITS + 1), key=end))


class Workspace:
    """Where programs that share a tile leave their sums, for one stream at a time."""

    def __init__(self, num_sums: int, num_tiles: int, device: torch.device) -> None:
        self.sums = torch.empty(num_sums, dtype=torch.float32, device=device)
        # How many have come, of each tile; the last one makes it zero again.
        self.arrived = torch.zeros(num_tiles, dtype=torch.int32, device=device)

    @classmethod
    def of(
        cls, users: Sequence[tuple[Tile, Shape]], device: torch.device
    ) -> "Workspace":
        """With room for any one of these products at a time."""
        num_sums = (tile.num_sums(shape) for tile, shape in users)
        num_tiles = (tile.num_tiles(shape) for tile, shape in users)
        return cls(max(num_sums, default=0), max(num_tiles, default=0), device)


def skinny(
    x: Tensor, weight: Tensor, tile: Tile, space: Workspace, bias: Tensor | None = None
) -> Tensor:
    """x @ weight.T + bias, of up to MAX_ROWS rows.

    x [..., num_inputs], weight [num_outputs, num_inputs] contiguous, bias [num_outputs].
    Returns [..., num_outputs], contiguous, x's dtype.
    """
    y = x.new_empty((*x.shape[:-1], len(weight)))
    _launch(x, weight, bias, y, tile, space, "new")
    return y


def add_skinny(
    stream: Tensor, x: Tensor, weight: Tensor, tile: Tile, space: Workspace
) -> Tensor:
    """Add x @ weight.T to `stream` [..., num_outputs], contiguous, in place."""
    _launch(x, weight, None, stream, tile, space, "adds")
    return stream


def skinny_gated(
    x: Tensor, weight: Tensor, tile: Tile, space: Workspace, activation: Activation
) -> Tensor:
    """activation(gates) * ups, which are the halves of x @ weight.T, rounded as torch's.

    weight [2 * num_outputs, num_inputs]: that of the gates, and below that of the ups.
    Returns [..., num_outputs].
    """
    y = x.new_empty((*x.shape[:-1], len(weight) // 2))
    _launch(x, weight, None, y, tile, space, activation)
    return y


def _launch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    y: Tensor,
    tile: Tile,
    space: Workspace,
    form: Form,
) -> None:
    x, size = as_rows(x, weight, y, MAX_ROWS), weight.shape[1]
    if not len(x):
        return
    num_outputs = y.shape[-1]
    rows = next(rows for rows in ROWS if rows >= len(x))
    shape = Shape(num_outputs, size, rows, len(weight) // num_outputs)
    num_tiles = tile.num_tiles(shape)
    assert tile.num_sums(shape) <= len(space.sums), "sums have room"
    assert tile.num_splits == 1 or num_tiles <= len(space.arrived), "tiles have room"
    _skinny_kernel[num_tiles, tile.num_splits](
        x,
        weight,
        bias,
        y,
        space.sums,
        space.arrived,
        len(x),
        x.stride(0),
        num_outputs,
        size,
        is_even=size % tile.inputs == 0,
        rows=rows,
        outputs=tile.outputs,
        inputs=tile.inputs,
        form=form,
        upcast=_UPCAST,
        num_stages=tile.num_stages,
        num_warps=tile.num_warps,
    )


@triton.jit(do_not_specialize=("num_rows",))
def _skinny_kernel(
    x,
    weight,
    bias,
    y,
    all_sums,
    arrived,
    num_rows,
    x_stride,
    num_outputs,
    size,
    is_even: tl.constexpr,
    rows: tl.constexpr,
    outputs: tl.constexpr,
    inputs: tl.constexpr,
    form: tl.constexpr,
    upcast: tl.constexpr,
    num_stages: tl.constexpr,
):
    """One program: a tile's outputs of all rows, from its part of the inputs."""
    is_gated: tl.constexpr = form == "silu" or form == "gelu_tanh"
    tile, split, num_splits = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    output, row = tile * outputs + tl.arange(0, outputs), tl.arange(0, rows)
    # Outputs and rows beyond the last compute another's once more, and are not stored.
    of_weight = weight + (output % num_outputs).to(tl.int64)[:, None] * size
    of_x = x + (row % num_rows)[None, :] * x_stride
    at = tl.arange(0, inputs)
    num_pieces = tl.cdiv(size, inputs)
    first = split * num_pieces // num_splits
    last = (split + 1) * num_pieces // num_splits
    sums = tl.zeros([outputs, rows], tl.float32)
    ups = tl.zeros([outputs, rows], tl.float32)
    for piece in tl.range(first, last, num_stages=num_stages):
        here = piece * inputs + at
        right = _piece(of_x + here[:, None], here[:, None] < size, is_even, upcast)
        left = _piece(of_weight + here[None, :], here[None, :] < size, is_even, upcast)
        sums = tl.dot(left, right, sums)
        if is_gated:
            below = of_weight + num_outputs.to(tl.int64) * size
            left = _piece(below + here[None, :], here[None, :] < size, is_even, upcast)
            ups = tl.dot(left, right, ups)
    is_last = num_splits == 1
    if num_splits > 1:
        all_outputs = tl.num_programs(0) * outputs
        mine = all_sums + output[:, None] * rows + row[None, :]
        of_split = all_outputs * rows * (2 if is_gated else 1)
        tl.store(mine + split * of_split, sums)
        if is_gated:
            tl.store(mine + split * of_split + all_outputs * rows, ups)
        tl.debug_barrier()
        is_last = tl.atomic_add(arrived + tile, 1, sem="acq_rel") == num_splits - 1
        if is_last:
            sums = tl.zeros([outputs, rows], tl.float32)
            ups = tl.zeros([outputs, rows], tl.float32)
            for other in range(num_splits):
                sums += tl.load(mine + other * of_split, cache_modifier=".cg")
                if is_gated:
                    beside = mine + other * of_split + all_outputs * rows
                    ups += tl.load(beside, cache_modifier=".cg")
            tl.store(arrived + tile, 0)
    if is_last:
        _finish(sums, ups, bias, y, output, row, num_rows, num_outputs, form, is_gated)


@triton.jit
def _piece(at, is_there, is_even: tl.constexpr, upcast: tl.constexpr):
    """What the tensor cores take; zeros beyond the last input."""
    values = tl.load(at) if is_even else tl.load(at, mask=is_there, other=0.0)
    return values.to(tl.float32) if upcast else values


@triton.jit
def _finish(
    sums,
    ups,
    bias,
    y,
    output,
    row,
    num_rows,
    num_outputs,
    form: tl.constexpr,
    is_gated: tl.constexpr,
):
    """Write a tile: [outputs, rows] in float32."""
    is_output = output < num_outputs
    mask = is_output[:, None] & (row < num_rows)[None, :]
    to = y + row[None, :].to(tl.int64) * num_outputs + output[:, None]
    if bias is not None:
        of_bias = tl.load(bias + output, mask=is_output, other=0.0)
        sums += of_bias.to(tl.float32)[:, None]
    if form == "adds":
        sums += tl.load(to, mask=mask, other=0.0).to(tl.float32)
    if is_gated:
        g = sums.to(y.dtype.element_ty).to(tl.float32)
        up = ups.to(y.dtype.element_ty).to(tl.float32)
        sums = gated(g, up, y.dtype.element_ty, form)
    tl.store(to, sums.to(y.dtype.element_ty), mask=mask)
