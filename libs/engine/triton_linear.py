"""Products of few rows with a matrix, at the speed at which memory gives the matrix.

Triton kernels, also run by its interpreter (see `engine.triton_rows`), without tensor
cores: a program computes a few outputs of all rows, sums over the inputs in float32 and
rounds once. The next piece of the weight is on its way while this one is summed; rows of
inputs are short and stay in the L1 cache. Grids follow from shapes alone, so that CUDA
graphs may record them. Different tilings sum in different orders: two workers that choose
differently differ as two batch sizes do, in the last bit of a bfloat16.
"""

from typing import Literal, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from engine.triton_rows import Activation, gated

MAX_ROWS = 4
ROWS = (1, 2, 4)  # what kernels are made for; three rows take the kernel for four
_LANE = tl.constexpr(8)  # elements of 16 bytes, what a thread reads at once

Form = Literal["new", "adds", "silu", "gelu_tanh"]


class Tiling(NamedTuple):
    """What a program computes: so many outputs, from so many inputs at a time."""

    outputs: int
    inputs: int
    num_warps: int


# Each thread has 4 to 16 loads of 16 bytes under way, and several programs share a
# multiprocessor: 64 KB and more in flight on each.
TILINGS = (
    Tiling(4, 1024, 4),
    Tiling(1, 2048, 4),
    Tiling(2, 2048, 4),
    Tiling(4, 2048, 8),
    Tiling(8, 512, 2),
    Tiling(2, 1024, 1),
)


def few_rows(
    x: Tensor, weight: Tensor, tiling: Tiling, bias: Tensor | None = None
) -> Tensor:
    """x @ weight.T + bias, of up to MAX_ROWS rows.

    x [..., num_inputs], weight [num_outputs, num_inputs] contiguous, bias [num_outputs].
    Returns [..., num_outputs], contiguous, x's dtype.
    """
    y = x.new_empty((*x.shape[:-1], len(weight)))
    _launch(x, weight, bias, y, tiling, "new")
    return y


def add_few_rows(stream: Tensor, x: Tensor, weight: Tensor, tiling: Tiling) -> Tensor:
    """Add x @ weight.T to `stream` [..., num_outputs], contiguous, in place."""
    _launch(x, weight, None, stream, tiling, "adds")
    return stream


def few_gated_rows(
    x: Tensor, weight: Tensor, tiling: Tiling, activation: Activation
) -> Tensor:
    """activation(gates) * ups, which are the halves of x @ weight.T, rounded as torch's.

    weight [2 * num_outputs, num_inputs]: that of the gates, and below that of the ups.
    Returns [..., num_outputs].
    """
    y = x.new_empty((*x.shape[:-1], len(weight) // 2))
    assert tiling.outputs > 1, "a gate and its up are of one program"
    _launch(x, weight, None, y, tiling, activation)
    return y


def padded(num_rows: int) -> int:
    """The number of rows of the kernel for so many."""
    return triton.next_power_of_2(num_rows)


def as_rows(x: Tensor, weight: Tensor, y: Tensor, most: int) -> Tensor:
    """x [..., num_inputs] as a kernel of at most so many rows takes it: [num_rows,
    num_inputs], each row contiguous. Weight and y must lie as it expects them.
    """
    x = x.reshape(-1, weight.shape[1])
    assert len(x) <= most, "these kernels are for few rows"
    assert weight.is_contiguous(), "a weight's rows lie together"
    assert y.is_contiguous(), "rows of outputs lie together"
    return x if x.stride(1) == 1 else x.contiguous()


def _launch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    y: Tensor,
    tiling: Tiling,
    form: Form,
) -> None:
    x, size = as_rows(x, weight, y, MAX_ROWS), weight.shape[1]
    if not len(x):
        return
    num_outputs = y.shape[-1]
    per_program = tiling.outputs if form in ("new", "adds") else tiling.outputs // 2
    _linear_kernel[triton.cdiv(num_outputs, per_program),](
        x,
        weight,
        bias,
        y,
        len(x),
        x.stride(0),
        num_outputs,
        size=size,
        rows=padded(len(x)),
        outputs=tiling.outputs,
        inputs=min(tiling.inputs, max(16, triton.next_power_of_2(size))),
        form=form,
        num_warps=tiling.num_warps,
    )


@triton.jit(do_not_specialize=("num_rows",))
def _linear_kernel(
    x,
    weight,
    bias,
    y,
    num_rows,
    x_stride,
    num_outputs,
    size: tl.constexpr,
    rows: tl.constexpr,
    outputs: tl.constexpr,
    inputs: tl.constexpr,
    form: tl.constexpr,
):
    """One program: `outputs` rows of the weight with all rows of x."""
    is_gated: tl.constexpr = form == "silu" or form == "gelu_tanh"
    num_written: tl.constexpr = outputs // 2 if is_gated else outputs
    first = tl.program_id(0).to(tl.int64) * num_written
    row, output = tl.arange(0, rows), first + tl.arange(0, num_written)
    mask = (row < num_rows)[:, None] & (output < num_outputs)[None, :]
    to = y + row[:, None] * num_outputs + output[None, :]
    if form == "adds":  # read now, so that nothing is waited for at the end
        before = tl.load(to, mask=mask, other=0.0).to(tl.float32)
    at = tl.arange(0, outputs)
    if is_gated:  # the gate and the up of an output lie side by side in the tile
        is_weight = first + at // 2 < num_outputs
        of_weight = first + at // 2 + at % 2 * num_outputs
    else:
        is_weight, of_weight = output < num_outputs, output
    sums = _sums(
        x + row * x_stride, weight + of_weight * size, row < num_rows, is_weight,
        size, rows, outputs, inputs,
    )  # fmt: skip
    if bias is not None:
        of_bias = tl.load(bias + output, mask=output < num_outputs, other=0.0)
        sums += of_bias.to(tl.float32)[None, :]
    if form == "adds":
        sums += before
    if is_gated:
        sums = _gated(sums, y.dtype.element_ty, rows, outputs, form)
    tl.store(to, sums.to(y.dtype.element_ty), mask=mask)


@triton.jit
def _sums(
    x,
    weights,
    is_row,
    is_output,
    size: tl.constexpr,
    rows: tl.constexpr,
    outputs: tl.constexpr,
    inputs: tl.constexpr,
):
    """[rows, outputs] in float32, of pointers to the first element of each row.

    Tiles are [lanes, rows, outputs, 8]. In this order Triton deals the lanes out to
    threads, eight elements each, and keeps rows and outputs in a thread: x and weights
    meet where they were loaded, and only the last sum is between threads.
    """
    lane = tl.arange(0, inputs // _LANE) * _LANE
    at = lane[:, None, None, None] + tl.arange(0, _LANE)[None, None, None, :]
    of_x, of_weights = x[None, :, None, None] + at, weights[None, None, :, None] + at
    is_row, is_output = is_row[None, :, None, None], is_output[None, None, :, None]
    sums = tl.zeros([inputs // _LANE, rows, outputs], tl.float32)
    now = tl.load(
        of_weights, mask=is_output & (at < size), other=0.0,
        eviction_policy="evict_first",
    )  # fmt: skip
    for start in range(0, size, inputs):
        left = size - start
        later = tl.load(
            of_weights + start + inputs, mask=is_output & (at < left - inputs),
            other=0.0, eviction_policy="evict_first",
        )  # fmt: skip
        values = tl.load(of_x + start, mask=is_row & (at < left), other=0.0)
        sums += tl.sum(now.to(tl.float32) * values.to(tl.float32), 3)
        now = later
    return tl.sum(sums, 0)


@triton.jit
def _gated(
    sums,
    dtype: tl.constexpr,
    rows: tl.constexpr,
    outputs: tl.constexpr,
    activation: tl.constexpr,
):
    """[rows, outputs] to half of them."""
    rounded = sums.to(dtype).to(tl.float32)
    g, up = tl.split(tl.reshape(rounded, [rows, outputs // 2, 2]))
    return gated(g, up, dtype, activation)
