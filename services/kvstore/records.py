"""A sequence record: everything of a request that outlives the process computing it."""

from dataclasses import dataclass, field
from enum import Enum

from kv.operations import Record
from protocol.memory import KVGeometry
from protocol.messages import DecodeJob, PrefillJob, RequestId


class Status(Enum):
    WAITING = "waiting"  # no blocks yet
    PARKED = "parked"  # blocks, and nobody's: its job is announced
    OWNED = "owned"  # a worker computes it


@dataclass(slots=True, eq=False)
class SequenceRecord:
    """One sequence, between its admission and its release.

    Slots below `num_computed_tokens` hold the K/V of `token_ids`. The last token, just
    sampled, has none yet: it is the next step's input.
    """

    request: PrefillJob  # as admitted, but for the tokens, which grow here
    token_ids: list[int]
    max_blocks: int  # what the sequence was promised in all
    generation: int
    status: Status = Status.WAITING
    owner: str | None = None
    is_cancelled: bool = False
    num_computed_tokens: int = 0
    num_cached_tokens: int = 0
    num_deaths: int = 0  # owners that died since the last step that succeeded
    block_table: list[int] = field(default_factory=list)

    @classmethod
    def admit(cls, job: PrefillJob, geometry: KVGeometry) -> "SequenceRecord":
        # The last sampled token is never computed: it needs no slot.
        max_slots = job.num_prompt_tokens + job.sampling.max_tokens - 1
        max_slots = max(max_slots, len(job.token_ids))
        return cls(
            request=job.changed(token_ids=()),
            token_ids=list(job.token_ids),
            max_blocks=geometry.num_blocks(max_slots),
            generation=job.generation,
        )

    @property
    def request_id(self) -> RequestId:
        return self.request.request_id

    @property
    def num_promised(self) -> int:
        """Blocks of its promise that it has not taken yet."""
        return self.max_blocks - len(self.block_table)

    def num_blocks_to_grow(self, geometry: KVGeometry) -> int:
        """How many blocks its next step needs beyond those it has."""
        wanted = min(geometry.num_blocks(len(self.token_ids)), self.max_blocks)
        return max(0, wanted - len(self.block_table))

    def next_job(self) -> PrefillJob | DecodeJob:
        """The message that asks some worker to go on with this sequence."""
        num_outputs = len(self.token_ids) - self.request.num_prompt_tokens
        num_missing = len(self.token_ids) - self.num_computed_tokens
        if num_outputs == 0 or num_missing > 1:
            return self.request.changed(
                token_ids=tuple(self.token_ids), generation=self.generation
            )
        return DecodeJob(
            request_id=self.request_id,
            generation=self.generation,
            sampling=self.request.sampling,
            reply_to=self.request.reply_to,
            deadline=self.request.deadline,
        )

    def as_answer(self) -> Record:
        return Record(
            request_id=self.request_id,
            generation=self.generation,
            token_ids=tuple(self.token_ids),
            num_prompt_tokens=self.request.num_prompt_tokens,
            num_computed_tokens=self.num_computed_tokens,
            num_cached_tokens=self.num_cached_tokens,
            block_table=tuple(self.block_table),
            sampling=self.request.sampling,
            reply_to=self.request.reply_to,
        )
