"""Which KV block belongs to whom. Counts only; never touches a block's bytes.

Each block is free, cached, referenced or quarantined, and exactly one of these.
"""

from collections.abc import Iterable, Sequence


class BlockPool:
    """All blocks of a pool, and the room that running sequences were promised."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        # Used as a stack: the block freed last is the one still in a cache.
        self._free = list(range(num_blocks - 1, -1, -1))
        self._ref_counts = [0] * num_blocks
        self._num_reserved = 0

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_cached(self) -> int:
        """Blocks that nobody uses and a later prompt may share."""
        return 0

    @property
    def num_referenced(self) -> int:
        return self.num_blocks - self.num_free - self.num_quarantined

    @property
    def num_quarantined(self) -> int:
        """Blocks that a worker which lost them might still write to."""
        return 0

    @property
    def num_reserved(self) -> int:
        """Free blocks that running sequences were promised."""
        return self._num_reserved

    @property
    def num_unpromised(self) -> int:
        """Free blocks that no running sequence was promised."""
        return self.num_free - self._num_reserved

    def reserve(self, count: int) -> bool:
        """Promise `count` blocks to one sequence's growth, if there are that many."""
        if count > self.num_unpromised:
            return False
        self._num_reserved += count
        return True

    def unreserve(self, count: int) -> None:
        assert count <= self._num_reserved, "more was given back than promised"
        self._num_reserved -= count

    def take_reserved(self, count: int) -> list[int]:
        """Turn a promise into blocks, each referenced once."""
        assert count <= self._num_reserved, "blocks beyond the promise"
        self._num_reserved -= count
        taken = [self._free.pop() for _ in range(count)]
        for block in taken:
            self._ref_counts[block] = 1
        return taken

    def release(self, block_table: Sequence[int]) -> None:
        """Drop one reference to each block."""
        for block in block_table:
            assert self._ref_counts[block] > 0, f"block {block} freed twice"
            self._ref_counts[block] -= 1
            if self._ref_counts[block] == 0:
                self._free.append(block)

    def check(self, tables: Iterable[Sequence[int]]) -> None:
        """No block is lost, doubled, or counted other than the tables use it."""
        uses = [0] * self.num_blocks
        for table in tables:
            for block in table:
                uses[block] += 1
        assert uses == self._ref_counts, "reference counts differ from the tables"
        assert len(set(self._free)) == len(self._free), "a block is free twice"
        assert all(uses[block] == 0 for block in self._free), "a free block is in use"
        held = sum(count > 0 for count in uses)
        assert held + self.num_free == self.num_blocks, "lost a block"
        assert 0 <= self._num_reserved <= self.num_free, "promised more than is free"
