"""Which pool gets a request: where it waits least. Decides; sends nothing.

The cost of a pool, in tokens that come before the first one of the answer: what of the
prompt is not cached there, the prompts that wait there already, and a block for each
answer that is being generated, since these take their part of every step. A pool
without room for the prompt is chosen only if none has any.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from gateway.pool import PoolView
from gateway.prefixes import SentPrefixes, hashes_of
from protocol.block_hash import BlockHash


@dataclass(frozen=True, slots=True)
class Load:
    """What this gateway has sent to a pool and waits for."""

    num_open: int = 0
    num_queued_tokens: int = 0  # of prompts without a token of their answers yet


@dataclass(frozen=True, slots=True)
class Candidate:
    """A pool, and what it has to do with one prompt."""

    name: str
    block_size: int
    num_cached_tokens: int
    num_free_blocks: int  # or evictable ones
    num_waiting: int  # sequences in line for blocks
    load: Load

    def cost(self, num_tokens: int) -> tuple[bool, int, int]:
        """The lower, the sooner it would answer."""
        num_missing = num_tokens - self.num_cached_tokens
        num_before = num_missing + self.load.num_queued_tokens
        has_room = not self.num_waiting and (
            num_before <= self.num_free_blocks * self.block_size
        )
        busy = self.load.num_open * self.block_size
        return not has_room, num_before + busy, self.load.num_open


def choose(candidates: Sequence[Candidate], num_tokens: int) -> str:
    """The pool of the lowest cost, the first named of equals."""
    return min(candidates, key=lambda candidate: candidate.cost(num_tokens)).name


@dataclass(slots=True)
class Router:
    """Chooses, and remembers which prompts went where."""

    _sent: dict[str, SentPrefixes] = field(default_factory=dict)

    def route(
        self,
        token_ids: Sequence[int],
        cache_salt: str,
        views: Sequence[PoolView],
        loads: dict[str, Load],
    ) -> PoolView:
        """One of the pools for this prompt, which is sent there now."""
        hashes = {
            size: hashes_of(token_ids, cache_salt, size)
            for size in {view.statuses[0].block_size for view in views}
        }
        candidates = [
            self._candidate(view, hashes[view.statuses[0].block_size], loads)
            for view in views
        ]
        name = choose(candidates, len(token_ids))
        (chosen,) = [view for view in views if view.name == name]
        status = chosen.statuses[0]
        self._sent_to(name).add(hashes[status.block_size], status.total)
        return chosen

    def forget(self, pool: str) -> None:
        """Its store is another one, which has nothing cached."""
        self._sent_to(pool).clear()

    def _sent_to(self, pool: str) -> SentPrefixes:
        return self._sent.setdefault(pool, SentPrefixes())

    def _candidate(
        self, view: PoolView, hashes: Sequence[BlockHash], loads: dict[str, Load]
    ) -> Candidate:
        statuses = view.statuses
        block_size = statuses[0].block_size
        return Candidate(
            name=view.name,
            block_size=block_size,
            num_cached_tokens=self._sent_to(view.name).num_known(hashes) * block_size,
            num_free_blocks=min(status.free + status.cached for status in statuses),
            num_waiting=sum(status.num_waiting for status in statuses),
            load=loads.get(view.name, Load()),
        )
