"""What a pool's prefix cache probably holds: the blocks of prompts that were sent there.

A guess: the pool evicts as it must, and other gateways send prompts of their own. A wrong
one costs time, never correctness.
"""

from collections import OrderedDict
from collections.abc import Sequence

from protocol.block_hash import BlockHash, block_hash, root_hash


def hashes_of(
    token_ids: Sequence[int], cache_salt: str, block_size: int
) -> list[BlockHash]:
    """Of the full blocks that a prompt may share: its last token is always computed."""
    hashes, parent = [], root_hash(cache_salt)
    for end in range(block_size, len(token_ids), block_size):
        parent = block_hash(parent, token_ids[end - block_size : end])
        hashes.append(parent)
    return hashes


class SentPrefixes:
    """Hashes of blocks, the least recently sent forgotten first."""

    def __init__(self) -> None:
        self._hashes: OrderedDict[BlockHash, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._hashes)

    def num_known(self, hashes: Sequence[BlockHash]) -> int:
        """How many of the first ones were sent before."""
        for number, hash in enumerate(hashes):
            if hash not in self._hashes:
                return number
        return len(hashes)

    def add(self, hashes: Sequence[BlockHash], max_blocks: int) -> None:
        """They are sent now; the pool has so many blocks in all."""
        for hash in reversed(hashes):  # the tail is of no use without the head
            self._hashes[hash] = None
            self._hashes.move_to_end(hash)
        while len(self._hashes) > max_blocks:
            self._hashes.popitem(last=False)

    def clear(self) -> None:
        self._hashes.clear()
