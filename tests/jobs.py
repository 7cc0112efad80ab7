"""Jobs and pools of the size that tests need."""

import time
from typing import Any
from zlib import crc32

from kv.operations import BeginLoad, Held, Progress, Record
from kv.segments import HostSegment, SegmentMaker
from kvstore.memory import PoolMemory
from kvstore.pool import Pool
from kvstore.store import Store
from protocol.memory import KVGeometry, LayerGeometry, ModelFacts, TensorSpec
from protocol.messages import PrefillJob, RequestId
from protocol.sampling import SamplingParams

LAYER = LayerGeometry(num_kv_heads=2, k_head_dim=4, v_head_dim=3)
GEOMETRY = KVGeometry(layers=(LAYER, LAYER), dtype="float32", block_size=4)
FACTS = ModelFacts(model="tiny", fingerprint="f1", vocab_size=100, max_position=64)
WEIGHTS = TensorSpec(name="w", offset=0, shape=(8,), dtype="float32")
LOAD = BeginLoad(facts=FACTS, geometry=GEOMETRY, tensors=(WEIGHTS,), weights_bytes=32)


def prefill_job(
    request_id: str = "r1",
    num_tokens: int = 6,
    *,
    like: str | None = None,
    max_tokens: int = 4,
    generation: int = 0,
    deadline: float | None = None,
    cache_salt: str = "",
) -> PrefillJob:
    """A prompt of 1, 2, 3 ..., whose first token is another one for each request.

    With `like` it is the prompt of that request. It needs ceil(num_tokens / 4) blocks of
    GEOMETRY to start, and ceil((num_tokens + max_tokens - 1) / 4) in the end.
    """
    return PrefillJob(
        request_id=RequestId(request_id),
        generation=generation,
        token_ids=(first_token(like or request_id), *range(2, num_tokens + 1)),
        num_prompt_tokens=num_tokens,
        sampling=SamplingParams(max_tokens=max_tokens, temperature=0),
        reply_to="g1",
        deadline=time.time() + 60 if deadline is None else deadline,
        cache_salt=cache_salt,
    )


def first_token(request_id: str) -> int:
    return 1 if request_id == "r1" else crc32(request_id.encode()) >> 1


def loaded_pool(
    num_blocks: int, make_segment: SegmentMaker = HostSegment, **changes: Any
) -> Pool:
    """A pool of blocks of four tokens, as after a load; `changes` are of the load."""
    load = LOAD.changed(**changes)
    memory = PoolMemory(num_blocks, 4, 0, make_segment)
    memory.begin_load("loader", load)
    memory.commit_load("loader")
    pool = Pool("p", memory, max_waiting=10)
    pool.store = Store(load.geometry, num_blocks, 10, pool.division)
    return pool


def step(record: Record, num_computed_tokens: int, *token_ids: int) -> Progress:
    """What a step did to a sequence that was adopted as `record`."""
    return Progress(
        request_id=record.request_id,
        generation=record.generation,
        num_computed_tokens=num_computed_tokens,
        token_ids=token_ids,
    )


def held(record: Record) -> Held:
    return Held(request_id=record.request_id, generation=record.generation)
