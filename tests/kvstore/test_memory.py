"""The pool's segments: who loads the weights, and who may map them."""

import mmap
import os

import pytest
from jobs import FACTS, LOAD

from kv.errors import NoRoom
from kv.operations import Attached, Loading, LoadWanted, RefusedReply
from kv.segments import HostSegment
from kvstore.memory import PoolMemory


@pytest.fixture
def memory() -> PoolMemory:
    return PoolMemory(num_blocks=10, block_size=4, max_model_len=0)


def loaded(memory: PoolMemory) -> PoolMemory:
    memory.begin_load("loader", LOAD)
    memory.commit_load("loader")
    return memory


def test_only_the_first_worker_is_asked_to_load(memory: PoolMemory) -> None:
    """
    One worker runs the loader; the others are told to come back.
    """
    first = memory.attach("a", FACTS.fingerprint)
    second = memory.attach("b", FACTS.fingerprint)

    assert first == LoadWanted(block_size=4)
    assert second == Loading()


def test_the_next_worker_is_asked_when_the_first_dies(memory: PoolMemory) -> None:
    """
    A worker that dies before its loader began does not leave the pool empty for ever.
    """
    memory.attach("a", FACTS.fingerprint)

    memory.detach("a")

    assert isinstance(memory.attach("b", FACTS.fingerprint), LoadWanted)


def test_a_loader_that_dies_is_followed_by_another(memory: PoolMemory) -> None:
    """
    Half-filled weights are thrown away with the loader that filled them.
    """
    memory.attach("a", FACTS.fingerprint)
    memory.begin_load("loader", LOAD)

    memory.detach("loader")

    assert isinstance(memory.attach("a", FACTS.fingerprint), LoadWanted)


def test_only_who_began_may_commit(memory: PoolMemory) -> None:
    """
    A commit by anybody but the loader at work changes nothing.
    """
    memory.begin_load("loader", LOAD)

    assert memory.commit_load("somebody") is None
    assert memory.load is None


def test_a_second_loader_is_refused(memory: PoolMemory) -> None:
    """
    Two loaders never fill the same weights.
    """
    assert memory.begin_load("one", LOAD)

    assert not memory.begin_load("two", LOAD)


def test_workers_get_geometry_and_manifest(memory: PoolMemory) -> None:
    """
    After the load a worker learns everything it needs to find its way in the memory.
    """
    loaded(memory)

    answer = memory.attach("a", FACTS.fingerprint)

    assert isinstance(answer, Attached)
    assert answer.geometry == LOAD.geometry
    assert answer.tensors == LOAD.tensors
    assert answer.num_blocks == 10


def test_another_model_is_refused_in_words(memory: PoolMemory) -> None:
    """
    A worker that was started with another model is told which one the store holds.
    """
    loaded(memory)

    answer = memory.attach("a", "other")

    assert isinstance(answer, RefusedReply)
    assert "the store holds tiny" in answer.reason


def test_the_shortest_limit_bounds_a_sequence() -> None:
    """
    A sequence is as long as the model's positions, the blocks and the setting allow.
    """
    by_blocks = loaded(PoolMemory(num_blocks=10, block_size=4, max_model_len=0))
    by_model = loaded(PoolMemory(num_blocks=1000, block_size=4, max_model_len=0))
    by_setting = loaded(PoolMemory(num_blocks=1000, block_size=4, max_model_len=20))

    assert by_blocks.max_model_len == 40
    assert by_model.max_model_len == 64
    assert by_setting.max_model_len == 20


def test_committed_weights_cannot_be_mapped_for_writing(memory: PoolMemory) -> None:
    """
    After the commit no worker, by mistake or otherwise, can change the weights.
    """
    loaded(memory)

    weights, _ = memory.descriptors()

    with pytest.raises(PermissionError):
        mmap.mmap(weights, 0, access=mmap.ACCESS_WRITE)


def test_blocks_take_memory_only_when_written(memory: PoolMemory) -> None:
    """
    An unused pool costs address space, not memory.
    """
    loaded(memory)

    _, blocks = memory.descriptors()

    stat = os.fstat(blocks)
    assert stat.st_size == LOAD.geometry.segment_bytes(10)
    assert stat.st_blocks == 0


@pytest.mark.parametrize(
    ("free_bytes", "num_blocks"), [(0, 2048), (100 * LOAD.geometry.block_bytes, 85)]
)
def test_blocks_fill_what_a_gpu_has_left(free_bytes: int, num_blocks: int) -> None:
    """
    When nobody says how many, a GPU's free memory does, less what workers need.
    """
    memory = PoolMemory(num_blocks=0, block_size=4, max_model_len=0)
    memory.begin_load("loader", LOAD)

    memory.commit_load("loader", free_bytes)

    assert memory.num_blocks == num_blocks


def test_a_gpu_without_room_for_a_block_is_refused() -> None:
    """
    A pool without a block could serve nobody, and the store says so at once.
    """
    memory = PoolMemory(num_blocks=0, block_size=4, max_model_len=0)
    memory.begin_load("loader", LOAD)

    with pytest.raises(NoRoom, match="a KV block takes"):
        memory.commit_load("loader", free_bytes=10)


def test_a_load_after_one_without_room_counts_anew() -> None:
    """
    Blocks that could not be made bind nobody to their number.
    """
    full = True

    def make(name: str, size_bytes: int) -> HostSegment:
        if full and name == "blocks":
            raise NoRoom("the GPU is full")
        return HostSegment(name, size_bytes)

    memory = PoolMemory(0, block_size=4, max_model_len=0, make_segment=make)
    memory.begin_load("one", LOAD)
    with pytest.raises(NoRoom):
        memory.commit_load("one", 1000 * LOAD.geometry.block_bytes)
    memory.detach("one")

    full = False
    memory.begin_load("two", LOAD)
    memory.commit_load("two", 100 * LOAD.geometry.block_bytes)

    assert memory.num_blocks == 85
