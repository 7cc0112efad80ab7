"""Who gets KV blocks and who waits for them. Synchronous; knows no worker by its work,
only as a peer that may still write.

Growth of who runs comes before admission; admission is first come, first served. Equal
prefixes share their blocks, also those that somebody computes right now.
"""

from collections import Counter
from collections.abc import Collection, Iterator

from kv.operations import Progress
from kvstore.blocks import BlockPool
from kvstore.counts import Counts
from kvstore.line import Line
from kvstore.prefixes import Prefixes
from kvstore.records import SequenceRecord, Status
from protocol.block_hash import BlockHash

# The share of all blocks that admissions leave to the growth of those who run.
RESERVE = 0.01
# Blocks that a growing sequence gets beyond those it needs, so that its worker asks, and
# waits for the answer, a quarter as often: at most so many, and a hundredth of the rest.
AHEAD = 3


class Room:
    """The blocks of a pool, and the line of those who wait for some."""

    def __init__(self, num_blocks: int, counts: Counts) -> None:
        self.blocks = BlockPool(num_blocks)
        self._counts = counts
        self._num_kept = round(RESERVE * num_blocks)
        self._line = Line()
        self._prefixes = Prefixes()
        self._num_following = 0

    @property
    def stalled(self) -> SequenceRecord | None:
        """Who is the first in line, if it has blocks and needs more to go on."""
        head = self._line.head
        return head if head and head.block_table else None

    @property
    def num_in_line(self) -> int:
        return len(self._line)

    @property
    def num_waiting(self) -> int:
        """Sequences that nobody can compute yet: in line, or following another one."""
        return len(self._line) + self._num_following

    def place(self, record: SequenceRecord) -> bool:
        """Give it the blocks for its tokens (PARKED), or let it wait for who computes
        them already (FOLLOWING); False when there is no room.
        """
        if record.block_table:  # it ran out of room on its way
            return self._give(record, [])
        known = self.blocks.find(record.shareable_hashes)
        if found := self._prefixes.find(record, len(known)):
            self._follow(record, *found)
            return True
        return self._give(record, known)

    def wait(self, record: SequenceRecord) -> None:
        """Put it into the line, with the blocks that it has."""
        record.status = Status.WAITING
        self._line.join(record)

    def serve_line(self) -> Iterator[SequenceRecord]:
        """Place who waits, in order; yields those who got blocks."""
        while (head := self._line.head) and self.place(head):
            self._line.leave(head)
            if head.status is Status.PARKED:
                yield head

    def fill(self, record: SequenceRecord, step: Progress) -> list[SequenceRecord]:
        """Record a step: full blocks may be shared now. Returns the followers that got
        their blocks from it.
        """
        was_prompt = not record.is_prompt_computed
        for index in record.record(step):
            self.blocks.publish(record.block_table[index], record.hashes[index])
        if record.copies:
            self._end_copies(record)
        if not was_prompt:
            return []
        self._prefixes.end(record)
        return self._let_go(record)

    def grow(self, record: SequenceRecord) -> list[int] | None:
        """The blocks that its next step needs, and some more while there are plenty; None
        if there are not as many as it needs."""
        count = record.num_blocks_to_grow
        if count > self.blocks.num_available:
            return None
        if count:
            ahead = min(AHEAD, (self.blocks.num_available - count) // 100)
            count = min(count + ahead, record.max_blocks - len(record.block_table))
        blocks = self.blocks.take(count)
        record.block_table.extend(blocks)
        return blocks

    def take_back(self, record: SequenceRecord) -> None:
        """Preempt it: all its blocks are free, and it waits to be computed again."""
        if record.status is Status.WAITING:
            self._line.leave(record)
        self._empty(record)
        record.restart()
        record.generation += 1  # nobody may adopt what was announced before
        self.wait(record)

    def free(self, record: SequenceRecord) -> None:
        """It has ended, wherever it was."""
        if record.status is Status.WAITING:
            self._line.leave(record)
        if record.leader:
            self._leave_leader(record)
        self._empty(record)

    def fence(self, record: SequenceRecord, peer: str) -> bool:
        """Take it from a peer whose last step may still write its K/V.

        The next owner writes the same to the same slots, so it goes on in these blocks;
        nobody else gets them meanwhile. But a copy that the peer had begun would come
        over what the next owner writes: then it is isolated, if there is room for that.
        """
        if record.copies:
            return self.isolate(record, peer)
        self.blocks.fence(record.block_table[record.num_full_blocks :], peer)
        return True

    def isolate(self, record: SequenceRecord, peer: str) -> bool:
        """Take it from a peer that may still write behind its computed tokens.

        Full blocks stay as they are. Of a begun one the next owner takes a copy, and the
        peer's are quarantined. False when there is no room for that.
        """
        num_full = record.num_full_blocks
        lost = record.block_table[num_full:]
        del record.block_table[num_full:]
        begun = record.num_computed_tokens % record.block_size > 0
        if begun and not record.copies:
            self.blocks.share(lost[:1])  # until it was copied
        source = record.copies[0][0] if record.copies else lost[0] if begun else None
        self.blocks.quarantine(lost, peer)
        taken = self.grow(record)
        if source is not None:
            record.copies = [(source, taken[0] if taken else source)]
        return taken is not None

    def check(self, records: Collection[SequenceRecord]) -> None:
        """Whole-structure invariants; raises AssertionError."""
        uses: Counter[int] = Counter()
        for record in records:
            uses.update(record.block_table)
            uses.update(source for source, _ in record.copies)
            is_following = record.status is Status.FOLLOWING
            assert is_following == (record.leader is not None), "follows nobody"
            assert not record.leader or record in record.leader.followers, "lost"
        self.blocks.check(uses)
        self._prefixes.check(records)
        waiting = sum(record.status is Status.WAITING for record in records)
        assert waiting == len(self._line), "waits in no line"
        following = sum(record.status is Status.FOLLOWING for record in records)
        assert following == self._num_following, "lost count of followers"

    def _has_room(self, count: int, *, is_running: bool) -> bool:
        num_kept = 0
        if self.blocks.num_referenced and not is_running:
            num_kept = self._num_kept
        return self.blocks.num_available - count >= num_kept

    def _give(self, record: SequenceRecord, known: list[int]) -> bool:
        num_fresh = record.num_blocks_to_grow - len(known)
        num_needed = num_fresh + self.blocks.num_cached_among(known)
        if not self._has_room(num_needed, is_running=bool(record.block_table)):
            return False
        if not record.block_table:
            self._start(record, len(known) * record.block_size)
        self.blocks.share(known)
        record.block_table += known + self.blocks.take(num_fresh)
        record.status = Status.PARKED
        if not record.is_prompt_computed:
            self._prefixes.begin(record)
        return True

    def _follow(
        self, record: SequenceRecord, leader: SequenceRecord, awaited: BlockHash
    ) -> None:
        record.status = Status.FOLLOWING
        record.leader, record.awaited = leader, awaited
        leader.followers.append(record)
        self._num_following += 1

    def _leave_leader(self, follower: SequenceRecord) -> None:
        assert follower.leader, "follows nobody"
        follower.leader.followers.remove(follower)
        follower.leader = None
        self._num_following -= 1

    def _let_go(self, leader: SequenceRecord) -> list[SequenceRecord]:
        """Followers whose blocks are computed go their own ways."""
        forked = []
        for follower in list(leader.followers):
            if follower.awaited in self._prefixes:
                continue
            self._leave_leader(follower)
            if follower.awaited == leader.prompt_hash and self._fork(leader, follower):
                forked.append(follower)
            else:
                self.wait(follower)
        return forked

    def _fork(self, leader: SequenceRecord, follower: SequenceRecord) -> bool:
        """Share all that was computed of an equal prompt.

        The follower computes the last token again, for its logits; the block that it
        writes this to is its own copy (copy on write). False when there is no room.
        """
        num_computed = follower.num_prompt_slots - 1
        last, num_begun = divmod(num_computed, follower.block_size)
        if not self._has_room(1, is_running=False):
            return False
        *shared, source = leader.block_table[: last + 1]
        (own,) = self.blocks.take(1)
        self.blocks.share(shared)
        follower.block_table = [*shared, own]
        if num_begun:
            self.blocks.share([source])
            follower.copies = [(source, own)]
        self._start(follower, num_computed)
        follower.status = Status.PARKED
        return True

    def _start(self, record: SequenceRecord, num_known: int) -> None:
        """Behind so many tokens, whose blocks it shares."""
        record.start_behind(num_known)
        self._counts.looked_up(record.num_prompt_slots, num_known)

    def _end_copies(self, record: SequenceRecord) -> None:
        """Its owner has made them, or nobody needs them any more."""
        self.blocks.release([source for source, _ in record.copies])
        record.copies = []

    def _empty(self, record: SequenceRecord) -> None:
        """Give its blocks back; who followed it has to find another way."""
        self._end_copies(record)
        self.blocks.release(record.block_table)
        record.block_table = []
        self._prefixes.abandon(record)
        for follower in list(record.followers):
            self._leave_leader(follower)
            self.wait(follower)
