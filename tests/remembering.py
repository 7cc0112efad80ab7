"""A simulated worker, and memory that remembers whose K/V each slot holds.

The worker does what a real one does, but a step takes as long as the test wants: what
happens at the store meanwhile is the test's choice.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from jobs import held

from kv.operations import Advanced, Held, Progress, Record
from kvstore.store import Store
from protocol.messages import RequestId

VOCAB_SIZE = 3  # so small that prefixes meet by chance

# What the K/V of a slot was computed from: the salt, and all tokens up to its own.
Content = tuple[str, tuple[int, ...]]
GARBAGE: Content = ("garbage", ())


class Memory:
    """The slots of all blocks."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self._slots = [[GARBAGE] * block_size for _ in range(num_blocks)]

    def read(
        self, block_table: Sequence[int], num_slots: int, copied: Mapping[int, int]
    ) -> list[Content]:
        """The first slots; of a block that is `copied` from another, that one's."""
        places = [divmod(slot, self.block_size) for slot in range(num_slots)]
        blocks = [copied.get(block, block) for block in block_table]
        return [self._slots[blocks[index]][offset] for index, offset in places]

    def write(
        self, block_table: Sequence[int], slot: int, contents: Sequence[Content]
    ) -> None:
        """Fill slots from `slot` on."""
        for content in contents:
            index, offset = divmod(slot, self.block_size)
            self._slots[block_table[index]][offset] = content
            slot += 1

    def copy(self, source: int, target: int) -> None:
        self._slots[target] = list(self._slots[source])

    def spoil(self, block_table: Sequence[int], slot: int) -> None:
        """Overwrite all slots from `slot` on."""
        num_slots = len(block_table) * self.block_size
        self.write(block_table, slot, [GARBAGE] * (num_slots - slot))


def next_token(token_ids: Sequence[int]) -> int:
    """The model: greedy, so equal prefixes go on equally."""
    return (sum(token_ids[-3:]) + len(token_ids)) % VOCAB_SIZE


@dataclass(slots=True, eq=False)
class Notes:
    """What workers noted and the store has not read, and whom it called since: the
    journals of a pool."""

    steps: dict[str, list[list[Progress]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    called: set[str] = field(default_factory=set)

    def read(self, store: Store, worker: str) -> None:
        for steps in self.steps.pop(worker, []):
            store.record(steps, worker)


@dataclass(slots=True, eq=False)
class Running:
    """A sequence as its owner sees it."""

    record: Record
    salt: str
    token_ids: list[int]
    block_table: list[int]
    num_computed_tokens: int
    copies: dict[int, int]  # to block, from block
    num_sampled: int = 0  # by this owner

    @classmethod
    def adopt(cls, record: Record, salt: str) -> "Running":
        return cls(
            record=record,
            salt=salt,
            token_ids=list(record.token_ids),
            block_table=list(record.block_table),
            num_computed_tokens=record.num_computed_tokens,
            copies={target: source for source, target in record.copies},
        )

    @property
    def held(self) -> Held:
        return held(self.record)

    @property
    def num_missing_tokens(self) -> int:
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def is_finished(self) -> bool:
        num_outputs = len(self.token_ids) - self.record.num_prompt_tokens
        return num_outputs >= self.record.sampling.max_tokens

    def needs_nothing(self, block_size: int) -> bool:
        """The store may hear of its last step later; as of a real worker's sequence."""
        num_slots = len(self.block_table) * block_size
        return self.num_sampled > 1 and len(self.token_ids) <= num_slots

    def contents(self, start: int, stop: int) -> list[Content]:
        """What belongs into these slots."""
        tokens = tuple(self.token_ids)
        return [(self.salt, tokens[: slot + 1]) for slot in range(start, stop)]

    def check(self, memory: Memory) -> None:
        """What it builds on is its own prefix, and there is room for the next token."""
        num_computed = self.num_computed_tokens
        found = memory.read(self.block_table, num_computed, self.copies)
        assert found == self.contents(0, num_computed), "foreign K/V"
        for length in range(self.record.num_prompt_tokens, len(self.token_ids)):
            assert self.token_ids[length] == next_token(self.token_ids[:length])
        if not self.is_finished:
            num_slots = len(self.block_table) * memory.block_size
            assert num_slots >= len(self.token_ids), "no slot for the next token"


class Worker:
    """One owner of sequences, idle or in the middle of a step."""

    def __init__(self, name: str, store: Store, memory: Memory) -> None:
        self.name = name
        self.running: dict[RequestId, Running] = {}
        self._store = store
        self._memory = memory
        self._computing: list[tuple[Running, int]] = []
        self._copying: list[tuple[int, int]] = []  # before it computed: from, to

    @property
    def is_idle(self) -> bool:
        return not self._computing

    @property
    def computing(self) -> list[RequestId]:
        return [running.record.request_id for running, _ in self._computing]

    def unfinished(self) -> list[Running]:
        return [r for r in self.running.values() if not r.is_finished]

    def adopt(self, record: Record, salt: str) -> Running:
        running = Running.adopt(record, salt)
        running.check(self._memory)
        self.running[record.request_id] = running
        return running

    def begin(self, chunks: Sequence[tuple[Running, int]]) -> None:
        """The first half of a step: so many tokens of each of these."""
        for running, _ in chunks:
            for target, source in running.copies.items():
                self._memory.copy(source, target)
                self._copying.append((source, target))
            running.copies = {}
        self._computing = list(chunks)
        self._compute()

    def finish(self, notes: Notes | None = None) -> Advanced | None:
        """The second half: until now it may read and write.

        With notes it asks the store only when it has to; None if it had not to.
        """
        self._compute()
        computing, self._computing, self._copying = self._computing, [], []
        progress = [self._progress(*chunk) for chunk in computing]
        size = self._memory.block_size
        can_wait = all(running.needs_nothing(size) for running, _ in computing)
        if notes and can_wait:
            notes.steps[self.name].append(progress)
            if self.name not in notes.called:
                return None
            notes.called.remove(self.name)
            progress = []
        if notes:
            notes.read(self._store, self.name)
        advanced = self._store.advance(progress, self.name)
        for growth in advanced.growth:
            self.running[growth.request_id].block_table.extend(growth.block_ids)
        for request_id in advanced.gone:
            self.running.pop(request_id, None)
        for running in self.running.values():
            running.check(self._memory)
        return advanced

    def overdue(self) -> list[Progress]:
        """It hung, and reports its step as if nothing had happened."""
        return [self._progress(running, 0) for running in self.running.values()]

    def leave(self, sequences: Sequence[Running]) -> list[Held]:
        for running in sequences:
            del self.running[running.record.request_id]
        return [running.held for running in sequences]

    def spoil(self) -> None:
        """Write wherever it may: it died in the middle of a step, or hangs."""
        for running in self.running.values():
            self._memory.spoil(running.block_table, running.num_computed_tokens)
            for target in running.copies:
                self._memory.spoil([target], 0)

    def linger(self) -> None:
        """It was killed, and a GPU still does what it had begun, from the start."""
        for source, target in self._copying:
            self._memory.copy(source, target)
        for running, num_tokens in self._computing:
            start = running.num_computed_tokens
            contents = running.contents(start, start + num_tokens)
            self._memory.write(running.block_table, start, contents)

    def _compute(self) -> None:
        for running, num_tokens in self._computing:
            running.check(self._memory)
            start = running.num_computed_tokens
            contents = running.contents(start, start + num_tokens)
            self._memory.write(running.block_table, start, contents)

    def _progress(self, running: Running, num_tokens: int) -> Progress:
        running.num_computed_tokens += num_tokens
        new = () if running.num_missing_tokens else (next_token(running.token_ids),)
        running.num_sampled += len(new)
        running.token_ids.extend(new)
        return Progress(
            request_id=running.record.request_id,
            generation=running.record.generation,
            num_computed_tokens=running.num_computed_tokens,
            token_ids=new,
        )
