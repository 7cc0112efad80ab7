"""What services say to each other survives the wire, and nothing else does."""

import msgpack
import pytest
from jobs import prefill_job
from pydantic import ValidationError

from protocol.messages import (
    Cancel,
    DecodeJob,
    Failed,
    ForgetShares,
    InForce,
    PoolStatus,
    RequestId,
    Shares,
    SteeredShares,
    TokenEvent,
    TokenEvents,
    WorkerStatus,
    decode_control,
    decode_job,
    decode_reply,
    decode_status,
)
from protocol.sampling import SamplingParams
from protocol.wire import MalformedMessage, Message, encode

DECODE_JOB = DecodeJob(
    request_id=RequestId("r1"),
    generation=2,
    sampling=SamplingParams(max_tokens=3),
    reply_to="g1",
    deadline=1.0,
)
EVENTS = TokenEvents(
    events=(
        TokenEvent(
            request_id=RequestId("r1"),
            generation=1,
            index=0,
            token_ids=(5,),
            finish_reason="stop",
        ),
    )
)
POOL = PoolStatus(
    pool="p", model="m", block_size=4, max_model_len=8, vocab_size=10, num_waiting=0,
    num_parked=0, total=2, free=1, cached=0, referenced=1, quarantined=0,
)  # fmt: skip
WORKER = WorkerStatus(
    service="decode", worker_id="d", pool="p", pid=1, host="h",
    in_force=InForce(device="cuda", dtype="bfloat16", lane_sms=(132, 76)),
)  # fmt: skip


@pytest.mark.parametrize("job", [prefill_job(), DECODE_JOB], ids=["prefill", "decode"])
def test_jobs_survive_the_wire(job: Message) -> None:
    """
    A job is read back as what it was, told apart by its tag.
    """
    assert decode_job(encode(job)) == job


def test_orders_survive_the_wire() -> None:
    """
    A pool's control stream has cancels and shares, told apart by their tags.
    """
    cancel, shares = Cancel(request_id=RequestId("r1")), Shares(prefill=100, decode=1)
    orders = [cancel, shares, SteeredShares(shares=shares), ForgetShares()]

    assert [decode_control(encode(order)) for order in orders] == orders


@pytest.mark.parametrize("percent", [0, 101])
def test_a_share_is_1_to_100_percent(percent: int) -> None:
    """
    Each phase has something of the machine, and none has more than there is.
    """
    with pytest.raises(ValidationError):
        Shares(prefill=percent, decode=50)


def test_replies_survive_the_wire() -> None:
    """
    Tokens and failures come back on the same stream, each as itself.
    """
    failed = Failed(request_id=RequestId("r1"), reason="because")

    assert decode_reply(encode(EVENTS)) == EVENTS
    assert decode_reply(encode(failed)) == failed


def test_statuses_survive_the_wire() -> None:
    """
    Workers and pools share one registry and are told apart by their tags.
    """
    assert decode_status(encode(WORKER)) == WORKER
    assert decode_status(encode(POOL)) == POOL


def test_messages_do_not_change() -> None:
    """
    A message is frozen; a changed copy leaves the original as it was.
    """
    job = prefill_job(generation=1)

    changed = job.changed(generation=2)

    assert (job.generation, changed.generation) == (1, 2)
    with pytest.raises(ValidationError, match="frozen"):
        job.generation = 3


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "not msgpack"),
        (b"\xc1", "not msgpack"),
        (msgpack.packb({"type": "bake"}), "does not match any of the expected tags"),
        (msgpack.packb([1, 2]), "valid dictionary"),
        (encode(Cancel(request_id=RequestId("r1"))), "expected tags"),
        (msgpack.packb({"type": "decode", "colour": 1}), "Extra inputs"),
    ],
    ids=["empty", "bytes", "unknown tag", "list", "other message", "extra field"],
)
def test_what_is_no_job_is_refused(body: bytes, reason: str) -> None:
    """
    Bytes that are no job raise one error, whose text says what was wrong.
    """
    with pytest.raises(MalformedMessage, match=reason):
        decode_job(body)


def test_an_error_does_not_repeat_the_message() -> None:
    """
    The reason is logged, so it never contains a prompt's tokens.
    """
    body = msgpack.packb(encode_as_dict(prefill_job()) | {"token_ids": [123456789000]})

    with pytest.raises(MalformedMessage) as caught:
        decode_job(body)

    assert "token_ids.0" in str(caught.value)
    assert "123456789000" not in str(caught.value)


@pytest.mark.parametrize(
    "field",
    [
        {"temperature": -0.1},
        {"top_p": 0.0},
        {"min_p": 1.1},
        {"top_k": -1},
        {"max_tokens": 0},
        {"seed": -1},
        {"stop_token_ids": tuple(range(65))},
        {"stop_token_ids": (-1,)},
    ],
    ids=str,
)
def test_sampling_parameters_have_limits(field: dict[str, object]) -> None:
    """
    No worker ever sees a sampling parameter outside its range.
    """
    with pytest.raises(ValidationError):
        SamplingParams.model_validate({"max_tokens": 1} | field)


def encode_as_dict(message: Message) -> dict[str, object]:
    return dict(message.model_dump())
