"""The arithmetic of KV blocks."""

from protocol.memory import KVGeometry, LayerGeometry

WIDE = LayerGeometry(num_kv_heads=4, k_head_dim=8, v_head_dim=8)
UNEVEN = LayerGeometry(num_kv_heads=2, k_head_dim=24, v_head_dim=16)


def test_a_block_holds_k_and_v_of_every_layer() -> None:
    """
    A block's bytes are those of all its layers, whose shapes may differ.
    """
    geometry = KVGeometry(layers=(WIDE, UNEVEN), dtype="float32", block_size=16)

    assert geometry.block_bytes == 4 * 16 * (4 * 16 + 2 * 40)


def test_bfloat16_takes_half() -> None:
    """
    The bytes of a block follow the dtype of its elements.
    """
    full = KVGeometry(layers=(WIDE,), dtype="float32", block_size=16)

    half = full.changed(dtype="bfloat16")

    assert 2 * half.block_bytes == full.block_bytes


def test_a_started_block_counts() -> None:
    """
    Tokens fill blocks one after the other; the last one may be partly empty.
    """
    geometry = KVGeometry(layers=(WIDE,), dtype="float32", block_size=16)

    counts = [geometry.num_blocks(n) for n in (0, 1, 16, 17, 32)]

    assert counts == [0, 1, 1, 2, 2]
