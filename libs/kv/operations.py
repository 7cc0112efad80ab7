"""What workers ask of the store, and what it answers.

A sequence that a worker holds is named by (request id, generation). The generation
grows at each change of owner, so whoever still uses an older one is told *gone*.

What comes by the batch is a named tuple, on the wire a plain array: a step names each of
its sequences, and the names of the fields would be most of the message.
"""

from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from protocol.memory import KVGeometry, ModelFacts, SegmentHandle, TensorSpec
from protocol.messages import Cancel, Phase, PoolStatus, PrefillJob, RequestId
from protocol.sampling import SamplingParams
from protocol.wire import Decoder, Message


class Attach(Message):
    """Let me work here; my model has this fingerprint."""

    type: Literal["attach"] = "attach"
    worker_id: str
    fingerprint: str
    phases: tuple[Phase, ...] = ("prefill", "decode")  # what I compute


class BeginLoad(Message):
    """Make room for these weights; I, the loader, will fill it."""

    type: Literal["begin_load"] = "begin_load"
    facts: ModelFacts
    geometry: KVGeometry
    tensors: tuple[TensorSpec, ...]
    weights_bytes: int = Field(ge=0)


class CommitLoad(Message):
    """The weights are complete, and so much of a GPU's memory is free beside them."""

    type: Literal["commit_load"] = "commit_load"
    free_bytes: int = Field(default=0, ge=0)


class Admit(Message):
    """Give this request a record and KV blocks, and me the right to compute it."""

    type: Literal["admit"] = "admit"
    job: PrefillJob


class Adopt(Message):
    """Give me this parked sequence, if nobody took it since that generation."""

    type: Literal["adopt"] = "adopt"
    request_id: RequestId
    generation: int


class Progress(NamedTuple):
    """What one step did to one sequence."""

    request_id: RequestId
    generation: int
    num_computed_tokens: int
    token_ids: tuple[int, ...]  # the new ones
    logprobs: tuple[float, ...] = ()  # theirs, if they were asked for


class Advance(Message):
    """One step is done: record it, and tell me where the next tokens go."""

    type: Literal["advance"] = "advance"
    progress: tuple[Progress, ...]
    # Of prompts that wait: so many are a pile for me. 0 says nothing new.
    pile_tokens: int = Field(default=0, ge=0)


class Held(NamedTuple):
    """A sequence as its owner names it."""

    request_id: RequestId
    generation: int


class Park(Message):
    """I leave these sequences between two steps; announce them."""

    type: Literal["park"] = "park"
    sequences: tuple[Held, ...]


class Release(Message):
    """These sequences ended and their clients know: take everything back."""

    type: Literal["release"] = "release"
    sequences: tuple[Held, ...]


class Forget(Message):
    """Nobody is there to be told of these sequences: take everything back."""

    type: Literal["forget"] = "forget"
    sequences: tuple[Held, ...]


class Renew(Message):
    """I am alive, and still compute what I hold."""

    type: Literal["renew"] = "renew"


class Stats(Message):
    type: Literal["stats"] = "stats"


class LoadWanted(Message):
    """The store has no weights: run a loader, keep this connection, attach again."""

    type: Literal["load_wanted"] = "load_wanted"
    block_size: int


class Loading(Message):
    """Somebody else fills the weights: attach again in a moment."""

    type: Literal["loading"] = "loading"


class Attached(Message):
    """Welcome. Descriptors of weights and blocks follow, where handles need them."""

    type: Literal["attached"] = "attached"
    facts: ModelFacts
    geometry: KVGeometry
    tensors: tuple[TensorSpec, ...]
    num_blocks: int
    max_model_len: int
    weights: SegmentHandle
    blocks: SegmentHandle


class Room(Message):
    """The weights to fill; their descriptor follows this frame, if they have one."""

    type: Literal["room"] = "room"
    weights: SegmentHandle


class RefusedReply(Message):
    type: Literal["refused"] = "refused"
    reason: str


class Expired(Message):
    """Nothing was heard of you for too long: what you held is somebody else's by now."""

    type: Literal["expired"] = "expired"


class Part(NamedTuple):
    """How much of the machine a worker may take for its next step."""

    percent: int  # that its phase may take; 100 while no other phase computes
    num_peers: int  # workers that have it together, this one included

    @property
    def fraction(self) -> float:
        """Of the machine, for this worker."""
        return self.percent / 100 / self.num_peers


EVERYTHING = Part(100, 1)


class Record(Message):
    """A sequence, now the asking worker's: all that is needed to go on with it."""

    type: Literal["record"] = "record"
    request_id: RequestId
    generation: int
    token_ids: tuple[int, ...]
    num_prompt_tokens: int
    logprobs: tuple[float, ...] = ()  # of the output, if they were asked for
    num_computed_tokens: int
    num_cached_tokens: int
    block_size: int
    block_table: tuple[int, ...]
    copies: tuple[tuple[int, int], ...] = ()  # blocks to copy first, (from, to)
    sampling: SamplingParams
    reply_to: str
    part: Part = EVERYTHING


class Queued(Message):
    """No blocks are free: the store keeps the request and announces it when some are."""

    type: Literal["queued"] = "queued"


class Gone(Message):
    """Not yours to compute: finished, cancelled, or somebody else's by now."""

    type: Literal["gone"] = "gone"


class Growth(NamedTuple):
    """Blocks to append to a sequence's table before its next step."""

    request_id: RequestId
    block_ids: tuple[int, ...]


class Advanced(Message):
    """`gone` are sequences that are not the worker's any more: drop them."""

    type: Literal["advanced"] = "advanced"
    growth: tuple[Growth, ...]
    gone: tuple[RequestId, ...]
    part: Part = EVERYTHING


class Done(Message):
    type: Literal["done"] = "done"


Operation = (
    Attach
    | BeginLoad
    | CommitLoad
    | Admit
    | Adopt
    | Advance
    | Park
    | Release
    | Forget
    | Renew
    | Cancel
    | Stats
)
Answer = (
    LoadWanted
    | Loading
    | Attached
    | Room
    | RefusedReply
    | Expired
    | Record
    | Queued
    | Gone
    | Advanced
    | Done
    | PoolStatus
)

decode_operation: Decoder[Operation] = Decoder(
    Annotated[Operation, Field(discriminator="type")]
)
decode_answer: Decoder[Answer] = Decoder(Annotated[Answer, Field(discriminator="type")])
