"""K and V of new tokens go to their slots in the blocks, by a Triton kernel."""

import triton
import triton.language as tl
from torch import Tensor

from engine.triton_keys import LayerMemory


def store(layer: LayerMemory, key: Tensor, value: Tensor, slot_mapping: Tensor) -> None:
    """Write K and V of each token to its slot.

    key [num_tokens, num_kv_heads, k_head_dim], value [.., .., v_head_dim], last
    dimensions contiguous, in the pool's dtype. slot_mapping [num_tokens] int32 or int64
    has block x block_size + offset in it; a token with a negative slot is skipped.
    """
    assert key.stride(-1) == value.stride(-1) == 1, "a head's elements lie together"
    assert key.dtype == value.dtype == layer.memory.dtype, "dtype of the pool"
    if len(key) == 0:
        return
    geometry = layer.geometry
    width = triton.next_power_of_2(max(geometry.k_head_dim, geometry.v_head_dim))
    heads = triton.next_power_of_2(geometry.num_kv_heads)
    heads = min(heads, max(1, 2048 // width))
    _store_kernel[len(key), triton.cdiv(geometry.num_kv_heads, heads)](
        key,
        value,
        layer.memory,
        slot_mapping,
        *key.stride()[:2],
        *value.stride()[:2],
        layer.memory.stride(0),
        layer.k_offset,
        layer.v_offset,
        kv_heads=geometry.num_kv_heads,
        block_size=layer.block_size,
        k_dim=geometry.k_head_dim,
        v_dim=geometry.v_head_dim,
        heads=heads,
        width=width,
    )


@triton.jit(do_not_specialize_on_alignment=("slot_mapping",))
def _store_kernel(
    key,
    value,
    memory,
    slot_mapping,
    k_token_stride,
    k_head_stride,
    v_token_stride,
    v_head_stride,
    block_stride,
    k_offset,
    v_offset,
    kv_heads: tl.constexpr,
    block_size: tl.constexpr,
    k_dim: tl.constexpr,
    v_dim: tl.constexpr,
    heads: tl.constexpr,
    width: tl.constexpr,
):
    """One program: some heads of a token."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slot_mapping + token).to(tl.int64)
    if slot < 0:
        return
    head = tl.program_id(1) * heads + tl.arange(0, heads)[:, None]
    dim = tl.arange(0, width)[None, :]
    block = memory + slot // block_size * block_stride
    row = head * block_size + slot % block_size
    is_k = (head < kv_heads) & (dim < k_dim)
    k = tl.load(key + token * k_token_stride + head * k_head_stride + dim, mask=is_k)
    is_v = (head < kv_heads) & (dim < v_dim)
    v = tl.load(value + token * v_token_stride + head * v_head_stride + dim, mask=is_v)
    tl.store(block + k_offset + row * k_dim + dim, k, mask=is_k)
    tl.store(block + v_offset + row * v_dim + dim, v, mask=is_v)
