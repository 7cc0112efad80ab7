"""The name of a full KV block: a hash of its tokens and of all blocks before it.

Equal hashes mean equal K/V, so a block may be shared by whoever has the same prefix. A
salt at the root keeps those apart who must not learn of each other's prompts: a fast
first token would tell that somebody asked the same before.
"""

from array import array
from collections.abc import Sequence
from hashlib import blake2b
from typing import NewType

BlockHash = NewType("BlockHash", bytes)

DIGEST_BYTES = 32  # of users who do not trust each other: collisions must be infeasible


def root_hash(salt: str) -> BlockHash:
    """The parent of a prefix's first block."""
    digest = blake2b(salt.encode(), digest_size=DIGEST_BYTES, person=b"root")
    return BlockHash(digest.digest())


def block_hash(parent: BlockHash, token_ids: Sequence[int]) -> BlockHash:
    """The hash of a block with these tokens behind `parent`."""
    tokens = array("I", token_ids).tobytes()
    return BlockHash(blake2b(parent + tokens, digest_size=DIGEST_BYTES).digest())
