"""Memory pressure: who gets blocks when there are not enough, and who gives way."""

from collections.abc import Iterator

import pytest
from jobs import GEOMETRY, held, prefill_job, step
from owning import admitted, adopted, announced, generated, prefilled
from remembering import Memory, Worker

from kv.operations import Gone, Progress, Queued, Record
from kvstore.store import Store
from protocol.messages import DecodeJob, PrefillJob, RequestId


@pytest.fixture
def store() -> Iterator[Store]:
    """A pool of ten blocks of four tokens; its invariants hold after each test."""
    store = Store(GEOMETRY, num_blocks=10, max_waiting=3)
    yield store
    store.check()


def crowded(store: Store, worker: str = "a") -> tuple[Record, Record]:
    """Two sequences that have all blocks; the older is "a"'s. Its next step lacks one."""
    older = generated(store, prefill_job("r1", 20, max_tokens=20), 4)
    younger = prefilled(store, prefill_job("r2", 13, max_tokens=20), worker)
    assert store.blocks.num_available == 0
    return older, younger


def growing(record: Record) -> Progress:
    """The step that fills the older one's last block."""
    return step(record, 24, 54)


def test_growth_comes_before_admission(store: Store) -> None:
    """
    The last blocks go to who is on its way, however long somebody waits at the door.
    """
    running = generated(store, prefill_job("r1", 20, max_tokens=20), 4)
    ending = admitted(store, prefill_job("r2", 12))
    store.admit(prefill_job("r3", 16), "a")
    store.cancel(ending.request_id)

    advanced = store.advance([growing(running)], "a")

    assert [len(growth.block_ids) for growth in advanced.growth] == [1]
    assert (store.counts.preemptions, announced(store)) == (0, [])


def test_admission_leaves_a_reserve_for_growth() -> None:
    """
    A hundredth of the blocks is not for newcomers, unless nobody else is there.
    """
    store = Store(GEOMETRY, num_blocks=200, max_waiting=3)
    running = admitted(store, prefill_job("r1", 400))

    refused = store.admit(prefill_job("r2", 396), "a")
    store.cancel(RequestId("r2"))
    smaller = store.admit(prefill_job("r3", 392), "a")

    assert isinstance(refused, Queued)
    assert isinstance(smaller, Record)
    grown = store.advance([step(running, 400, 50)], "a")
    assert len(grown.growth) == 1
    store.check()


def test_the_youngest_gives_way(store: Store) -> None:
    """
    Where there is nothing left, the one that came last loses its blocks, and is told.
    """
    older, younger = crowded(store)

    advanced = store.advance([growing(older), step(younger, 14, 51)], "a")

    assert [growth.request_id for growth in advanced.growth] == [older.request_id]
    assert advanced.gone == (younger.request_id,)
    assert (store.counts.preemptions, store.num_waiting) == (1, 1)


def test_the_youngest_gives_way_to_itself(store: Store) -> None:
    """
    Who is the youngest and needs a block is preempted, whatever the others do.
    """
    generated(store, prefill_job("r1", 20, max_tokens=20), 4)
    younger = generated(store, prefill_job("r2", 13, max_tokens=20), 3)

    advanced = store.advance([step(younger, 16, 53)], "a")

    assert advanced.gone == (younger.request_id,)
    assert advanced.growth == ()


def test_a_preempted_sequence_comes_back_with_all_its_tokens(store: Store) -> None:
    """
    It is announced as a prompt with the output so far: the client's stream goes on.
    """
    older, younger = crowded(store)
    store.advance([growing(older), step(younger, 14, 51)], "a")

    store.release([held(older)], "a")

    (record,) = announced(store)
    job = record.next_job()
    assert isinstance(job, PrefillJob)
    assert job.token_ids == (*prefill_job("r2", 13).token_ids, 50, 51)
    assert job.num_prompt_tokens == 13
    assert job.generation > younger.generation


def test_a_preempted_sequence_finds_what_it_had(store: Store) -> None:
    """
    Its full blocks stayed in the cache, so little is computed again.
    """
    older, younger = crowded(store)
    store.advance([growing(older), step(younger, 14, 51)], "a")

    store.release([held(older)], "a")

    (again,) = adopted(store, "b")
    assert again.num_computed_tokens == 12


def test_old_announcements_of_a_preempted_sequence_are_worth_nothing(
    store: Store,
) -> None:
    """
    A job that was announced before the preemption would build on blocks of others.
    """
    older, younger = crowded(store)
    store.park([held(younger)], "a")
    (old,) = [record.next_job() for record in announced(store)]
    store.advance([growing(older)], "a")

    waiting = store.adopt(old.request_id, old.generation, "b")
    store.release([held(older)], "a")
    parked = store.adopt(old.request_id, old.generation, "b")

    assert isinstance(old, DecodeJob)
    assert isinstance(waiting, Gone)
    assert isinstance(parked, Gone)


def test_who_was_not_in_the_step_is_told_too(store: Store) -> None:
    """
    A prompt that found no place in this step may still be the one that gives way.
    """
    older, younger = crowded(store)

    advanced = store.advance([growing(older)], "a")

    assert advanced.gone == (younger.request_id,)


def test_another_worker_s_sequence_is_taken_after_its_step(store: Store) -> None:
    """
    A worker may be writing, so its blocks are not taken before it says that it is done.
    """
    older, younger = crowded(store, worker="b")

    stalled = store.advance([growing(older)], "a")
    before = store.counts.preemptions
    advanced = store.advance([step(younger, 14, 51)], "b")

    assert stalled.gone == (older.request_id,)
    assert before == 0
    assert advanced.gone == (younger.request_id,)
    assert store.counts.preemptions == 1


def test_who_grows_waits_for_that_with_its_blocks(store: Store) -> None:
    """
    It goes on where it was, with all it has computed, at whichever worker adopts it.
    """
    older, younger = crowded(store, worker="b")
    table = older.block_table
    store.advance([growing(older)], "a")
    early = announced(store)

    store.advance([step(younger, 14, 51)], "b")

    (heir,) = adopted(store, "b")
    assert early == []
    assert heir.request_id == older.request_id
    assert heir.num_computed_tokens == 24
    assert heir.block_table[: len(table)] == table
    assert len(heir.block_table) == 7


@pytest.mark.parametrize("way", ["release", "park", "detach", "expire"])
def test_a_victim_may_leave_in_any_way(store: Store, way: str) -> None:
    """
    However the other worker's sequence comes back, its blocks go to who waits for them.
    """
    older, younger = crowded(store, worker="b")
    store.advance([growing(older)], "a")

    match way:
        case "release":
            store.release([held(younger)], "b")
        case "park":
            store.park([held(younger)], "b")
        case "detach":
            store.detach("b")
        case "expire":
            store.expire("b")
            store.detach("b")

    assert [record.request_id for record in announced(store)] == [older.request_id]


def test_who_stalls_does_not_wait_behind_who_waits_for_it(store: Store) -> None:
    """
    An older request at the door needs the blocks of one that needs just one more.
    """
    leader = admitted(store, prefill_job("r1", 8), "b")
    store.admit(prefill_job("r2", 24, like="r1"), "b")
    stalling = admitted(store, prefill_job("r3", 20, max_tokens=12), "a")
    youngest = admitted(store, prefill_job("r4", 12), "b")
    store.cancel(leader.request_id)
    store.advance([step(youngest, 5)], "b")
    for index in range(9):
        store.advance([step(stalling, 20 + index, 50 + index)], "a")
    assert announced(store) == []

    store.advance([step(youngest, 6)], "b")

    assert [record.request_id for record in announced(store)] == ["r3"]


def test_of_those_who_stall_the_youngest_gives_way(store: Store) -> None:
    """
    Where nobody else is left to wait for, they do not wait for each other.
    """
    first = prefilled(store, prefill_job("r1", 16, max_tokens=9), "a")
    second = prefilled(store, prefill_job("r2", 12, max_tokens=9), "c")
    prefilled(store, prefill_job("r3", 3, max_tokens=2), "b")
    for index in range(1, 5):
        store.advance([step(first, 16 + index, 50 + index)], "a")
        store.advance([step(second, 12 + index, 50 + index)], "c")

    store.expire("b")  # and what it may write to is lost for now

    assert [record.request_id for record in announced(store)] == ["r1"]
    assert store.counts.preemptions == 2


def test_the_preempted_come_before_newcomers(store: Store) -> None:
    """
    A sequence that was running waits at the head of the line.
    """
    older, younger = crowded(store)
    newcomer = store.admit(prefill_job("r3", 4), "a")
    store.advance([growing(older), step(younger, 14, 51)], "a")

    store.release([held(older)], "a")

    assert isinstance(newcomer, Queued)
    assert [record.request_id for record in announced(store)] == ["r2", "r3"]


def test_a_pool_is_full_before_anybody_is_preempted() -> None:
    """
    Nothing is set aside for what sequences might still need: at least 95 of 100 blocks
    hold live tokens just before the first one has to give way.
    """
    store = Store(GEOMETRY, num_blocks=400, max_waiting=1)
    worker = Worker("a", store, Memory(400, GEOMETRY.block_size))
    for number in range(30):
        job = prefill_job(f"r{number}", 8 + number % 5, max_tokens=100)
        worker.adopt(admitted(store, job), salt="")

    while not store.counts.preemptions:
        num_live_blocks = store.blocks.num_referenced
        worker.begin([(r, r.num_missing_tokens) for r in worker.unfinished()])
        worker.finish()

    assert num_live_blocks >= 0.95 * 400
    store.check()
