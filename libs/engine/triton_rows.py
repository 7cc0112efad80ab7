"""Rows of elements on a GPU, each operation in one pass: norm, gate, rotary embedding.

Triton kernels, also run by its interpreter (TRITON_INTERPRET=1 before the import), for
float32, float16 and bfloat16. They compute in float32 and round where transformers'
modules do. Grids follow from shapes alone, so that CUDA graphs may record them.
"""

from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 2048  # elements of one program, where rows are shorter
_VARYING = ("num_rows", "inner")

Activation = Literal["silu", "gelu_tanh"]


def rms_norm(x: Tensor, weight: Tensor, epsilon: float, offset: float = 0.0) -> Tensor:
    """x / sqrt(mean(x^2) + epsilon) * (weight + offset), over the last dimension.

    x [..., dim], any strides; weight [dim]. Returns x's shape, contiguous, x's dtype.
    Without an offset the normalised x is rounded before it is weighted, as Llama's is;
    with one (Gemma's is 1) only the product is rounded.
    """
    rows = _rows(x)
    num_rows, dim = rows.shape[0] * rows.shape[1], rows.shape[2]
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if num_rows == 0:
        return y
    width = triton.next_power_of_2(dim)
    height = max(1, _TILE // width)
    _norm_kernel[triton.cdiv(num_rows, height),](
        rows,
        weight,
        y,
        *rows.stride()[:2],
        num_rows,
        rows.shape[1],
        epsilon,
        offset,
        dim=dim,
        width=width,
        height=height,
        rounds_early=offset == 0,
        num_warps=_num_warps(width * height),
    )
    return y


def gate(gates: Tensor, ups: Tensor, activation: Activation) -> Tensor:
    """activation(gates) * ups, [..., width] each: maybe two halves of a wider row.

    The activation is rounded before the product, as torch's is. Returns contiguous.
    """
    y = torch.empty(gates.shape, dtype=gates.dtype, device=gates.device)
    if y.numel() == 0:
        return y
    width = gates.shape[-1]
    of_gates, of_ups = gates.reshape(-1, width), ups.reshape(-1, width)
    assert of_gates.stride(1) == of_ups.stride(1) == 1, "a row's elements lie together"
    tile = min(_TILE, triton.next_power_of_2(width))
    _gate_kernel[len(of_gates), triton.cdiv(width, tile)](
        of_gates,
        of_ups,
        y,
        of_gates.stride(0),
        of_ups.stride(0),
        width=width,
        tile=tile,
        activation=activation,
        num_warps=_num_warps(tile),
    )
    return y


def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotary embedding of q and k by halves (transformers' `rotate_half`), one launch.

    q [num_tokens, num_heads, dim], k [num_tokens, num_kv_heads, dim], last dimension
    contiguous, dim even; cos and sin [num_tokens, dim]. Returns new, contiguous ones.
    """
    num_tokens, num_heads, dim = q.shape
    kv_heads = k.shape[1]
    assert q.stride(2) == k.stride(2) == 1, "a head's elements lie together"
    assert cos.shape == sin.shape == (num_tokens, dim), "an angle for each element"
    assert cos.stride() == sin.stride() == (cos.stride(0), 1), "cos and sin alike"
    rotated_q = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    rotated_k = torch.empty(k.shape, dtype=k.dtype, device=k.device)
    if num_tokens == 0:
        return rotated_q, rotated_k
    half_width = triton.next_power_of_2(dim // 2)
    heads = min(
        max(1, _TILE // (2 * half_width)),
        triton.next_power_of_2(max(num_heads, kv_heads)),
    )
    num_tiles = triton.cdiv(num_heads, heads) + triton.cdiv(kv_heads, heads)
    _rotate_kernel[num_tokens, num_tiles](
        q,
        k,
        cos,
        sin,
        rotated_q,
        rotated_k,
        *q.stride()[:2],
        *k.stride()[:2],
        cos.stride(0),
        num_heads=num_heads,
        kv_heads=kv_heads,
        half=dim // 2,
        half_width=half_width,
        heads=heads,
    )
    return rotated_q, rotated_k


def _rows(x: Tensor) -> Tensor:
    """x as [outer, inner, dim], a view wherever two strides are enough."""
    if x.stride(-1) != 1:
        x = x.contiguous()
    if x.dim() > 3:
        x = x.flatten(0, -3)
    if x.dim() == 3 and len(x) == 1:
        x = x[0]
    return x.reshape(-1, 1, x.shape[-1]) if x.dim() < 3 else x


def _num_warps(elements: int) -> int:
    """Sixteen elements for each thread."""
    return max(1, min(16, elements // 512))


@triton.jit(do_not_specialize=_VARYING)
def _norm_kernel(
    x,
    weight,
    y,
    outer_stride,
    inner_stride,
    num_rows,
    inner,
    epsilon,
    offset,
    dim: tl.constexpr,
    width: tl.constexpr,
    height: tl.constexpr,
    rounds_early: tl.constexpr,
):
    """One program: `height` rows."""
    row = tl.program_id(0).to(tl.int64) * height + tl.arange(0, height)[:, None]
    at = tl.arange(0, width)[None, :]
    mask = (row < num_rows) & (at < dim)
    start = row // inner * outer_stride + row % inner * inner_stride
    values = tl.load(x + start + at, mask=mask, other=0.0).to(tl.float32)
    weights = tl.load(weight + at, mask=at < dim, other=0.0).to(tl.float32)
    mean = tl.sum(values * values, 1) / dim
    normal = values * tl.rsqrt(mean + epsilon)[:, None]
    if rounds_early:
        normal = normal.to(y.dtype.element_ty).to(tl.float32)
    else:
        weights += offset
    answer = (normal * weights).to(y.dtype.element_ty)
    tl.store(y + row * dim + at, answer, mask=mask)


@triton.jit
def _gate_kernel(
    gates,
    ups,
    y,
    gate_stride,
    up_stride,
    width: tl.constexpr,
    tile: tl.constexpr,
    activation: tl.constexpr,
):
    """One program: a piece of a row."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * tile + tl.arange(0, tile)
    mask = at < width
    g = tl.load(gates + row * gate_stride + at, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(ups + row * up_stride + at, mask=mask, other=0.0).to(tl.float32)
    answer = gated(g, up, y.dtype.element_ty, activation)
    tl.store(y + row * width + at, answer.to(y.dtype.element_ty), mask=mask)


@triton.jit
def gated(g, up, dtype: tl.constexpr, activation: tl.constexpr):
    """activation(g) * up in float32, the activation rounded to `dtype` as torch's is."""
    if activation == "silu":
        bent = g / (1 + tl.exp(-g))
    else:
        # g (1 + tanh u) / 2 is g times the logistic function of 2 u.
        twice = 1.5957691216057308 * (g + 0.044715 * g * g * g)  # 2 sqrt(2 / pi)
        bent = g / (1 + tl.exp(-twice))
    return bent.to(dtype).to(tl.float32) * up


@triton.jit
def _rotate_heads(
    x,
    y,
    cos,
    sin,
    token,
    first_head,
    token_stride,
    head_stride,
    num_heads: tl.constexpr,
    half: tl.constexpr,
    half_width: tl.constexpr,
    heads: tl.constexpr,
):
    """`heads` heads of one token; cos and sin point to its angles."""
    head = first_head + tl.arange(0, heads)[:, None]
    at = tl.arange(0, half_width)[None, :]
    is_angle = at < half
    mask = (head < num_heads) & is_angle
    start = x + token * token_stride + head * head_stride + at
    low = tl.load(start, mask=mask).to(tl.float32)
    high = tl.load(start + half, mask=mask).to(tl.float32)
    low_cos = tl.load(cos + at, mask=is_angle).to(tl.float32)
    high_cos = tl.load(cos + half + at, mask=is_angle).to(tl.float32)
    low_sin = tl.load(sin + at, mask=is_angle).to(tl.float32)
    high_sin = tl.load(sin + half + at, mask=is_angle).to(tl.float32)
    to = y + (token * num_heads + head) * (2 * half) + at
    rotated_low = low * low_cos - high * low_sin
    rotated_high = high * high_cos + low * high_sin
    tl.store(to, rotated_low.to(y.dtype.element_ty), mask=mask)
    tl.store(to + half, rotated_high.to(y.dtype.element_ty), mask=mask)


@triton.jit
def _rotate_kernel(
    q,
    k,
    cos,
    sin,
    rotated_q,
    rotated_k,
    q_token_stride,
    q_head_stride,
    k_token_stride,
    k_head_stride,
    angle_stride,
    num_heads: tl.constexpr,
    kv_heads: tl.constexpr,
    half: tl.constexpr,
    half_width: tl.constexpr,
    heads: tl.constexpr,
):
    """One program: some query heads of a token, or some of its key heads."""
    token = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    cos += token * angle_stride
    sin += token * angle_stride
    q_tiles: tl.constexpr = (num_heads + heads - 1) // heads
    if tile < q_tiles:
        _rotate_heads(
            q, rotated_q, cos, sin, token, tile * heads,
            q_token_stride, q_head_stride, num_heads, half, half_width, heads,
        )  # fmt: skip
    else:
        _rotate_heads(
            k, rotated_k, cos, sin, token, (tile - q_tiles) * heads,
            k_token_stride, k_head_stride, kv_heads, half, half_width, heads,
        )  # fmt: skip
