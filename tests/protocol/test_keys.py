"""Redis keys."""

from protocol import keys


def test_a_pool_s_keys_share_a_hash_slot() -> None:
    """
    The pool's name in braces is a hash tag: its streams live on one cluster node.
    """
    names = [keys.prefill("p"), keys.decode("p"), keys.control("p")]

    assert all("{p}" in name for name in names)
    assert len(set(names)) == 3


def test_every_key_is_the_mesh_s_own() -> None:
    """
    Nothing of the mesh lies outside its prefix: it can share a Redis.
    """
    names = [
        keys.prefill("p"),
        keys.replies("g"),
        keys.worker("w"),
        keys.pool("p"),
        keys.DEAD_LETTERS,
    ]

    assert all(name.startswith("tandem:") for name in names)
