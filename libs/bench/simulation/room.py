"""Memory of a store, counted in tokens: who may come in, and who may grow.

Blocks are not rounded up to: a sequence takes up to a block more than is counted here.
"""

RESERVE = 100  # one part of so many is kept for those who grow, as in the store


class Room:
    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.used = 0
        self.most = 0  # that was ever used
        self.num_growing = 0  # sequences that take another token with each step

    @property
    def free(self) -> int:
        return self.capacity - self.used

    def admit(self, num_tokens: int) -> bool:
        """Whether they got in: whoever grows must be able to go on."""
        reserve = max(self.capacity // RESERVE, self.num_growing + 1)
        if self.used and num_tokens + reserve > self.free:
            return False
        self.grow(num_tokens)
        return True

    def grow(self, num_tokens: int) -> None:
        self.used += num_tokens
        assert self.used <= self.capacity, "more tokens than there is memory"
        self.most = max(self.most, self.used)

    def give(self, num_tokens: int) -> None:
        self.used -= num_tokens
        assert self.used >= 0, "memory was given back twice"
