"""Which KV block belongs to whom, and which ones a later prompt may share. Counts only;
never touches a block's bytes.

Each block is free, cached, referenced or quarantined, and exactly one of these.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence

from protocol.block_hash import BlockHash


class BlockPool:
    """All blocks of a pool."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        # Used as a stack: the block freed last is the one still in a cache.
        self._free = list(range(num_blocks - 1, -1, -1))
        self._ref_counts = [0] * num_blocks
        self._block_of: dict[BlockHash, int] = {}
        self._hash_of: dict[int, BlockHash] = {}
        # Of nobody, with a hash: what a later prompt may share, least recent first.
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._quarantined: dict[
            int, set[str]
        ] = {}  # and the peers that may still write

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_cached(self) -> int:
        """Blocks that nobody uses and a later prompt may share."""
        return len(self._cached)

    @property
    def num_quarantined(self) -> int:
        """Blocks that a worker which lost them might still write to."""
        return len(self._quarantined)

    @property
    def num_referenced(self) -> int:
        unused = self.num_free + self.num_cached + self.num_quarantined
        return self.num_blocks - unused

    @property
    def num_available(self) -> int:
        """Blocks that `take` could give."""
        return self.num_free + self.num_cached

    def take(self, count: int) -> list[int]:
        """Blocks with unknown content, each referenced once; the cache shrinks if need be."""
        assert count <= self.num_available, "more blocks than there are"
        taken = [self._take_one() for _ in range(count)]
        for block in taken:
            self._ref_counts[block] = 1
        return taken

    def _take_one(self) -> int:
        if self._free:
            return self._free.pop()
        block, _ = self._cached.popitem(last=False)
        del self._block_of[self._hash_of.pop(block)]
        return block

    def find(self, hashes: Iterable[BlockHash]) -> list[int]:
        """The blocks of the longest prefix that is known."""
        found = []
        for hash in hashes:
            block = self._block_of.get(hash)
            if block is None:
                break
            found.append(block)
        return found

    def num_cached_among(self, blocks: Iterable[int]) -> int:
        """How many of these `num_available` counts, and would not once they are shared."""
        return sum(block in self._cached for block in blocks)

    def share(self, blocks: Iterable[int]) -> None:
        """One more reference to each."""
        for block in blocks:
            self._cached.pop(block, None)
            self._ref_counts[block] += 1

    def publish(self, block: int, hash: BlockHash) -> None:
        """The block is full and never changes again: prompts that begin so may share it."""
        if hash not in self._block_of and block not in self._hash_of:
            self._block_of[hash] = block
            self._hash_of[block] = hash

    def release(self, block_table: Sequence[int]) -> None:
        """Drop one reference to each block.

        Tail first: a block is useless once an earlier block of its chain is gone, so the
        tail is evicted first.
        """
        for block in reversed(block_table):
            assert self._ref_counts[block] > 0, f"block {block} freed twice"
            self._ref_counts[block] -= 1
            self._settle(block)

    def fence(self, blocks: Sequence[int], peer: str) -> None:
        """While the peer lives nobody gets them, but who has them already."""
        for block in blocks:
            assert self._hash_of.get(block) is None, "a full block is never written to"
            self._quarantined.setdefault(block, set()).add(peer)

    def quarantine(self, blocks: Sequence[int], peer: str) -> None:
        """Drop one reference to each; while the peer lives nobody gets them."""
        self.fence(blocks, peer)
        self.release(blocks)

    def lift_quarantine(self, peer: str) -> None:
        """The peer is gone and with it its last write."""
        for block in [b for b, peers in self._quarantined.items() if peer in peers]:
            self._quarantined[block].remove(peer)
            if not self._quarantined[block]:
                del self._quarantined[block]
                self._settle(block)

    def _settle(self, block: int) -> None:
        """To where a block belongs that nobody uses any more."""
        if self._ref_counts[block] or block in self._quarantined:
            return
        if block in self._hash_of:
            self._cached[block] = None
        else:
            self._free.append(block)

    def check(self, uses: Mapping[int, int]) -> None:
        """No block is lost, doubled, or counted other than it is used."""
        counted = {b: count for b, count in enumerate(self._ref_counts) if count}
        assert counted == uses, "reference counts differ from the tables"
        free, cached = set(self._free), set(self._cached)
        quarantined = set(self._quarantined)
        assert len(free) == len(self._free), "a block is free twice"
        groups = (free, cached, quarantined, set(uses) - quarantined)
        everything = [block for group in groups for block in group]
        assert sorted(everything) == list(range(self.num_blocks)), "lost a block"
        assert cached <= set(self._hash_of), "cached without a hash"
        assert not free & set(self._hash_of), "free with a hash"
        known = {block: hash for hash, block in self._block_of.items()}
        assert known == self._hash_of, "hashes differ from their blocks"
