"""A sequence as its owner sees it: tokens, block table, and when it ends."""

from dataclasses import dataclass

from engine.interface import Chunk, Drawn
from kv.operations import Held, Progress, Record
from protocol.messages import FinishReason, RequestId, TokenEvent
from protocol.sampling import SamplingParams


@dataclass(slots=True)
class Sequence:
    """One running sequence: `num_computed_tokens` catching up with its tokens."""

    request_id: RequestId
    generation: int
    sampling: SamplingParams
    reply_to: str
    token_ids: list[int]
    logprobs: list[float]  # of the output, if they were asked for
    num_prompt_tokens: int
    num_computed_tokens: int
    num_cached_tokens: int
    block_size: int
    block_table: list[int]
    # A new owner cannot know what reached the gateway: its first event repeats the
    # whole output, and the gateway drops what it has.
    num_published: int = 0
    num_sampled: int = 0  # by this owner; before the first one there was a prompt

    @classmethod
    def from_record(cls, record: Record) -> "Sequence":
        return cls(
            request_id=record.request_id,
            generation=record.generation,
            sampling=record.sampling,
            reply_to=record.reply_to,
            token_ids=list(record.token_ids),
            logprobs=list(record.logprobs),
            num_prompt_tokens=record.num_prompt_tokens,
            num_computed_tokens=record.num_computed_tokens,
            num_cached_tokens=record.num_cached_tokens,
            block_size=record.block_size,
            block_table=list(record.block_table),
        )

    @property
    def held(self) -> Held:
        return Held(request_id=self.request_id, generation=self.generation)

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_missing_tokens(self) -> int:
        """Tokens whose K/V the next steps have to compute; at least the newest."""
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def is_decoding(self) -> bool:
        return self.num_missing_tokens == 1 and self.num_output_tokens > 0

    @property
    def needs_nothing(self) -> bool:
        """The store may hear of its last step later: nobody waits for what that computed,
        and the next one has its slot."""
        num_slots = len(self.block_table) * self.block_size
        return self.num_sampled > 1 and len(self.token_ids) <= num_slots

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why no token follows the last one, or None: a function of the tokens alone,
        so that whoever adopts a sequence that just ended sees that it did."""
        num_outputs, sampling = self.num_output_tokens, self.sampling
        if num_outputs == 0:
            return None
        may_stop = num_outputs > sampling.min_tokens
        if may_stop and self.token_ids[-1] in sampling.stop_token_ids:
            return "stop"
        return "length" if num_outputs >= sampling.max_tokens else None

    def chunk(self, max_tokens: int) -> Chunk:
        """Its part of the next step: at most `max_tokens` of what is missing."""
        start = self.num_computed_tokens
        token_ids = self.token_ids[start : start + max_tokens]
        is_last = start + len(token_ids) == len(self.token_ids)
        return Chunk(
            token_ids=token_ids,
            num_computed_tokens=start,
            block_table=self.block_table,
            sampling=self.sampling,
            sample_index=self.num_output_tokens if is_last else None,
        )

    def apply(self, chunk: Chunk, token: Drawn | None) -> Progress:
        """Take a step's result in; the answer is what the store records of it."""
        self.num_computed_tokens += len(chunk.token_ids)
        token_ids = () if token is None else (token.token_id,)
        logprobs = () if token is None or token.logprob is None else (token.logprob,)
        self.num_sampled += len(token_ids)
        self.token_ids.extend(token_ids)
        self.logprobs.extend(logprobs)
        return Progress(
            request_id=self.request_id,
            generation=self.generation,
            num_computed_tokens=self.num_computed_tokens,
            token_ids=token_ids,
            logprobs=logprobs,
        )

    def publish(self) -> TokenEvent | None:
        """The event for all output that this owner has not published yet, if any."""
        index = self.num_published
        if index == self.num_output_tokens:
            return None
        self.num_published = self.num_output_tokens
        return TokenEvent(
            request_id=self.request_id,
            generation=self.generation,
            index=index,
            token_ids=tuple(self.token_ids[self.num_prompt_tokens + index :]),
            logprobs=tuple(self.logprobs[index:]),
            finish_reason=self.finish_reason,
            num_cached_tokens=self.num_cached_tokens,
        )
