"""A sequence record: everything of a request that outlives the process computing it."""

from dataclasses import dataclass, field
from enum import Enum

from kv.operations import Part, Progress, Record
from protocol.block_hash import BlockHash, block_hash, root_hash
from protocol.memory import KVGeometry
from protocol.messages import DecodeJob, PrefillJob, RequestId, TransferJob


class Status(Enum):
    WAITING = "waiting"  # in the line for blocks
    FOLLOWING = "following"  # somebody computes what it will share
    PARKED = "parked"  # blocks, and nobody's: its job is announced
    OWNED = "owned"  # a worker computes it


@dataclass(slots=True, eq=False)
class SequenceRecord:
    """One sequence, between its admission and its release.

    Slots below `num_computed_tokens` hold the K/V of `token_ids`. The last token, just
    sampled, has none yet: it is the next step's input.
    """

    request: PrefillJob  # as admitted, but for its output, which grows here
    token_ids: list[int]
    logprobs: list[float]  # of the output, if they were asked for
    block_size: int
    age: int  # the lower, the longer it is here
    max_blocks: int  # what it needs at its longest
    generation: int
    status: Status = Status.WAITING
    owner: str | None = None
    is_cancelled: bool = False
    is_preempted: bool = False  # its owner has to give it back at its next step
    is_recalled: bool = False  # the same, to be announced with its new address
    num_computed_tokens: int = 0
    num_cached_tokens: int | None = (
        None  # of the prompt, when it was first given blocks
    )
    num_deaths: int = 0  # owners that died since the last step that succeeded
    # What is computed as a prompt: after a preemption, also the output so far.
    num_prompt_slots: int = 0
    prompt_hash: BlockHash = field(init=False)  # of all these tokens
    hashes: list[BlockHash] = field(default_factory=list)  # of full blocks of tokens
    block_table: list[int] = field(default_factory=list)
    # (from, to): blocks to copy before the next step; `from` is referenced until then.
    copies: list[tuple[int, int]] = field(default_factory=list)
    transfer: TransferJob | None = None  # by which its K/V is to come, until it has
    leader: "SequenceRecord | None" = None
    awaited: BlockHash | None = None  # what it follows its leader for
    followers: "list[SequenceRecord]" = field(default_factory=list)

    @classmethod
    def admit(cls, job: PrefillJob, geometry: KVGeometry, age: int) -> "SequenceRecord":
        # The last sampled token is never computed: it needs no slot.
        max_slots = job.num_prompt_tokens + job.sampling.max_tokens - 1
        max_slots = max(max_slots, len(job.token_ids))
        record = cls(
            request=job.changed(token_ids=(), logprobs=()),
            token_ids=list(job.token_ids),
            logprobs=list(job.logprobs),
            block_size=geometry.block_size,
            age=age,
            max_blocks=geometry.num_blocks(max_slots),
            generation=job.generation,
        )
        record.restart()
        return record

    def restart(self) -> None:
        """Nothing is computed: all tokens are a prompt."""
        self.num_computed_tokens = 0
        self.num_prompt_slots = len(self.token_ids)
        self._hash(self.num_prompt_slots // self.block_size)
        tail = self.token_ids[len(self.hashes) * self.block_size :]
        self.prompt_hash = block_hash(self._last_hash, tail)

    def start_behind(self, num_tokens: int) -> None:
        """So many tokens need not be computed: their blocks are shared."""
        self.num_computed_tokens = num_tokens
        if self.num_cached_tokens is None:
            num_prompt = self.request.num_prompt_tokens
            self.num_cached_tokens = min(num_tokens, num_prompt)

    @property
    def shareable_hashes(self) -> list[BlockHash]:
        """Of the blocks that it may take from others: its last token is computed by
        itself, for its logits."""
        return self.hashes[: (self.num_prompt_slots - 1) // self.block_size]

    @property
    def num_full_blocks(self) -> int:
        return self.num_computed_tokens // self.block_size

    @property
    def is_prompt_computed(self) -> bool:
        return self.num_computed_tokens >= self.num_prompt_slots

    @property
    def num_missing_prompt_tokens(self) -> int:
        return self.num_prompt_slots - self.num_computed_tokens

    def record(self, step: Progress) -> range:
        """Take a step in; the answer is which blocks it filled."""
        before = self.num_full_blocks
        self.token_ids.extend(step.token_ids)
        self.logprobs.extend(step.logprobs)
        self.num_computed_tokens = step.num_computed_tokens
        self.num_deaths = 0
        self._hash(self.num_full_blocks)
        return range(before, self.num_full_blocks)

    def _hash(self, num_blocks: int) -> None:
        for index in range(len(self.hashes), num_blocks):
            start = index * self.block_size
            tokens = self.token_ids[start : start + self.block_size]
            self.hashes.append(block_hash(self._last_hash, tokens))

    @property
    def _last_hash(self) -> BlockHash:
        return self.hashes[-1] if self.hashes else root_hash(self.request.cache_salt)

    @property
    def is_due(self) -> bool:
        """Its owner has to give it back, as soon as it is between two steps."""
        return self.is_cancelled or self.is_preempted or self.is_recalled

    @property
    def request_id(self) -> RequestId:
        return self.request.request_id

    @property
    def num_blocks_to_grow(self) -> int:
        """How many blocks its next step needs beyond those it has."""
        wanted = min(-(-len(self.token_ids) // self.block_size), self.max_blocks)
        return max(0, wanted - len(self.block_table))

    def as_prompt(self) -> PrefillJob:
        """All of it, for who has nothing of it yet."""
        return self.request.changed(
            token_ids=tuple(self.token_ids),
            logprobs=tuple(self.logprobs),
            generation=self.generation,
        )

    def next_job(self) -> PrefillJob | DecodeJob:
        """The message that asks some worker to go on with this sequence."""
        num_outputs = len(self.token_ids) - self.request.num_prompt_tokens
        num_missing = len(self.token_ids) - self.num_computed_tokens
        if num_outputs == 0 or num_missing > 1:
            return self.as_prompt()
        return DecodeJob(
            request_id=self.request_id,
            generation=self.generation,
            sampling=self.request.sampling,
            reply_to=self.request.reply_to,
            deadline=self.request.deadline,
        )

    def as_answer(self, part: Part) -> Record:
        return Record(
            request_id=self.request_id,
            generation=self.generation,
            token_ids=tuple(self.token_ids),
            num_prompt_tokens=self.request.num_prompt_tokens,
            logprobs=tuple(self.logprobs),
            num_computed_tokens=self.num_computed_tokens,
            num_cached_tokens=self.num_cached_tokens or 0,
            block_size=self.block_size,
            block_table=tuple(self.block_table),
            copies=tuple(self.copies),
            sampling=self.request.sampling,
            reply_to=self.request.reply_to,
            part=part,
        )
