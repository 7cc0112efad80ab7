"""Everything that services say to each other through Redis.

A *job* asks a pool to work, an *event* reports progress, a *status* says who is alive.
Each token carries its place in the output (`index`), so repeating an event is harmless:
the gateway takes only the next index.
"""

from typing import Annotated, Any, Literal, NamedTuple, NewType

from pydantic import Field

from protocol.memory import Device, DType, Quantization, Sharing
from protocol.sampling import SamplingParams, TokenId
from protocol.wire import Decoder, Message

RequestId = NewType("RequestId", str)

FinishReason = Literal["stop", "length", "abort"]
Phase = Literal["prefill", "decode"]
# Who a pool's shares are by: they follow its queue, its settings fix them, a person
# ordered them, or the controller did.
SharesBy = Literal["queue", "start", "order", "controller"]


class PrefillJob(Message):
    """Compute the K/V of these tokens and sample the next one.

    `token_ids` beyond `num_prompt_tokens` are output that the client already has: the
    job then continues a request whose memory was lost.
    """

    type: Literal["prefill"] = "prefill"
    request_id: RequestId
    generation: int = 0
    token_ids: tuple[TokenId, ...] = Field(min_length=1)
    num_prompt_tokens: int = Field(ge=1)
    logprobs: tuple[float, ...] = ()  # of that output, if `sampling` asks for them
    sampling: SamplingParams
    reply_to: str  # the gateway whose reply stream gets the events
    attempt: int = 0  # the gateway's count of sending it, each perhaps to a new address
    deadline: float  # seconds since the epoch; nobody waits for an answer after it
    priority: int = 0
    cache_salt: str = ""  # only prompts with the same salt share blocks


class DecodeJob(Message):
    """Adopt this sequence from the store and generate until it ends."""

    type: Literal["decode"] = "decode"
    request_id: RequestId
    generation: int
    sampling: SamplingParams
    reply_to: str
    deadline: float


class Source(Message):
    """A store that has the K/V of a sequence, and which generation of it that is."""

    address: str  # host:port of its transfers
    store: str  # worker id of that store
    generation: int


class TransferJob(Message):
    """Fetch the K/V of this sequence from another pool, and let it be decoded here."""

    type: Literal["transfer"] = "transfer"
    sequence: PrefillJob  # with all of its tokens
    source: Source
    num_cached_tokens: int = 0  # of the prompt, where it was computed


class Cancel(Message):
    """The client is gone or has enough: free whatever this request holds."""

    type: Literal["cancel"] = "cancel"
    request_id: RequestId


class Shares(Message):
    """How much of the machine each phase may take while both compute, in percent.

    Together they may be more than 100: then the phases compete for what both may take.
    """

    type: Literal["shares"] = "shares"
    prefill: int = Field(ge=1, le=100)
    decode: int = Field(ge=1, le=100)

    def __str__(self) -> str:
        return f"{self.prefill}/{self.decode}"


class SteeredShares(Message):
    """Those that the controller decided for. They yield to a person's order."""

    type: Literal["steered_shares"] = "steered_shares"
    shares: Shares


class ForgetShares(Message):
    """Nobody's order holds any more: the shares are again what they are at the start."""

    type: Literal["forget_shares"] = "forget_shares"


class Latencies(Message):
    """What one gateway measured of a pool in a while."""

    type: Literal["latencies"] = "latencies"
    ttfts: tuple[float, ...] = ()  # seconds; of requests still waiting, how long by now
    tpots: tuple[float, ...] = ()  # seconds, of each stream in that while
    num_prompt_tokens: int = 0  # that arrived
    num_begun: int = 0  # streams, by their first token
    num_ended: int = 0  # of such streams, however they did


Reason = Literal[
    "begins",
    "too few requests",
    "settling",
    "both hold",
    "both fail",
    "not sure yet",
    "ttft fails",
    "tpot fails",
    "no split would do",
    "a trial of 100/100",
    "the split was better",
    "a split was worse",
    "streams pile up",
    "no longer needed",
    "a person's order",
]


class Decision(Message):
    """What became of a pool's shares after one window, and why.

    Seen are latencies of the window, at the SLO's percentile; expected is what the model
    says of the next one. None: there were none, or they would grow without end.
    """

    type: Literal["decision"] = "decision"
    at: float  # seconds since the epoch
    leader: str  # the gateway that decided
    before: Shares
    shares: Shares
    reason: Reason
    load: float  # prompt tokens per second
    seen_ttft_seconds: float | None
    seen_tpot_seconds: float | None
    expected_ttft_seconds: float | None
    expected_tpot_seconds: float | None

    def summary(self) -> dict[str, Any]:
        """As the log and `GET /v1/pools/{pool}/decisions` show it."""
        fields = self.model_dump(exclude={"type", "before", "shares"})
        shown = {
            name: round(value, 4) if isinstance(value, float) else value
            for name, value in fields.items()
        }
        return {"before": str(self.before), "shares": str(self.shares)} | shown


class TokenEvent(NamedTuple):
    """New tokens of one sequence; the first of them is output number `index`.

    On the wire a plain array: at every token the names would be most of the message.
    """

    request_id: RequestId
    generation: int
    index: int  # type: ignore[assignment]  # in place of the tuple's method
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...] = ()  # of these tokens, if they were asked for
    finish_reason: FinishReason | None = None
    num_cached_tokens: int = 0


class TokenEvents(Message):
    """One step's tokens, of all sequences that one gateway waits for."""

    type: Literal["tokens"] = "tokens"
    events: tuple[TokenEvent, ...]
    pool: str = ""  # where they were computed


class Failed(Message):
    """A request came to an end that is not its client's fault."""

    type: Literal["failed"] = "failed"
    request_id: RequestId
    reason: str


class InForce(Message):
    """What a worker really runs on, whatever it was asked for, and why it has no more."""

    device: Device
    dtype: DType
    quantization: Quantization = "none"
    threads: int = 0  # that a step has at most; 0: it is not the host that computes
    # SMs of its lanes on a GPU: of the whole first, then of each part.
    lane_sms: tuple[int, ...] = ()
    without_split: str = ""  # why the GPU has no part of its own for this phase
    without_mps: str = ""  # why processes take turns on the GPU
    mps_percent: str = ""  # of the SMs at most, while the process runs; empty: all
    replay: Literal["none", "tapes", "graphs"] = "none"  # of decode steps
    without_replay: str = ""

    @property
    def is_split(self) -> bool:
        return len(self.lane_sms) > 1

    def in_words(self) -> str:
        """As people read it: `cuda bfloat16, 132/56 SMs, MPS, graphs`."""
        weights = f" {self.quantization}" if self.quantization != "none" else ""
        words = [f"{self.device} {self.dtype}{weights}"]
        if self.threads:
            words.append(f"{self.threads} threads")
        if self.lane_sms:
            words.append(f"{'/'.join(map(str, self.lane_sms))} SMs")
            percent = f" {self.mps_percent} %" if self.mps_percent else ""
            words.append("no MPS" if self.without_mps else f"MPS{percent}")
        if self.replay != "none":
            words.append(self.replay)
        return ", ".join(words)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it has no more."""
        reasons = self.without_split, self.without_mps, self.without_replay
        return tuple(filter(None, reasons))


class WorkerStatus(Message):
    """One process of the mesh, as its own heartbeat tells it."""

    type: Literal["worker"] = "worker"
    service: Literal["gateway", "prefill", "decode", "kvstore"]
    worker_id: str
    pool: str
    pid: int
    host: str
    phases: tuple[Phase, ...] = ()  # what a worker computes
    running: int = 0
    waiting: int = 0
    ready: bool = False
    in_force: InForce | None = None  # of a worker, once its engine is built
    percent: int = 100  # of the machine, that this worker's phase may take in a step
    computes_on: str = ""  # what that is, like "1.2 of 2 cores"


class PoolCounts(Message):
    """What happened in a pool since its store started."""

    queried_tokens: int = 0  # of prompts, looked up in the prefix cache
    cached_tokens: int = 0  # of them, found there
    preemptions: int = 0  # sequences that gave their KV blocks back
    parks: int = 0  # sequences left in the store: handed off, drained, or lost
    adoptions: int = 0  # parked sequences that a worker took
    recoveries: int = 0  # sequences taken from workers that were lost

    @property
    def hit_rate(self) -> float:
        """The share of prompt tokens that the prefix cache had."""
        return self.cached_tokens / max(1, self.queried_tokens)


BLOCK_STATES = ("total", "free", "cached", "referenced", "quarantined")


class PoolStatus(Message):
    """A pool's memory and what its model is, as its store tells it."""

    type: Literal["pool"] = "pool"
    pool: str
    store: str = ""  # worker id of the store: another one has none of the old memory
    sharing: Sharing = "memfd"  # how workers come to its memory
    handoff_pool: str = ""  # who decodes what is computed here; empty: this pool
    model: str
    block_size: int
    max_model_len: int  # tokens, prompt and output together
    vocab_size: int
    num_waiting: int  # sequences without blocks yet
    num_parked: int  # sequences with blocks and no owner
    total: int  # KV blocks, and below: how many of them are ...
    free: int
    cached: int
    referenced: int
    quarantined: int
    counts: PoolCounts = PoolCounts()
    shares: Shares = Shares(prefill=100, decode=100)
    shares_by: SharesBy = "start"

    def summary(self) -> dict[str, Any]:
        """As `tandem status --json` and `GET /v1/pools` show it."""
        return {
            "pool": self.pool,
            "handoff_pool": self.handoff_pool,
            "model": self.model,
            "sharing": self.sharing,
            "block_size": self.block_size,
            "max_model_len": self.max_model_len,
            "waiting": self.num_waiting,
            "parked": self.num_parked,
            "blocks": self.model_dump(include=set(BLOCK_STATES)),
            "counts": self.counts.model_dump(),
            "shares": self.shares.model_dump(exclude={"type"}),
            "shares_by": self.shares_by,
            "prefix_cache_hit_rate": round(self.counts.hit_rate, 4),
        }


Control = Annotated[
    Cancel | Shares | SteeredShares | ForgetShares, Field(discriminator="type")
]
Job = Annotated[PrefillJob | DecodeJob, Field(discriminator="type")]
Reply = Annotated[TokenEvents | Failed, Field(discriminator="type")]
Status = Annotated[WorkerStatus | PoolStatus, Field(discriminator="type")]

decode_job: Decoder[PrefillJob | DecodeJob] = Decoder(Job)
decode_transfer: Decoder[TransferJob] = Decoder(TransferJob)
decode_control: Decoder[Cancel | Shares | SteeredShares | ForgetShares] = Decoder(
    Control
)
decode_shares: Decoder[Shares] = Decoder(Shares)
decode_latencies: Decoder[Latencies] = Decoder(Latencies)
decode_decision: Decoder[Decision] = Decoder(Decision)
decode_reply: Decoder[TokenEvents | Failed] = Decoder(Reply)
decode_status: Decoder[WorkerStatus | PoolStatus] = Decoder(Status)
