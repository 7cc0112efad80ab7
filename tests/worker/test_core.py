"""A worker's rounds against a real store, with an engine that counts upwards."""

import time
from collections.abc import Iterator
from collections.abc import Sequence as Sequences
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import pytest
from direct_store import DirectStore
from jobs import loaded_pool, prefill_job

from engine.counting import CountingEngine
from engine.interface import Chunk, Drawn, Ending
from kv.operations import Answer, Operation
from kvstore.pool import Pool
from kvstore.store import Store
from protocol.messages import (
    DecodeJob,
    Phase,
    PrefillJob,
    RequestId,
    Shares,
    TokenEvent,
)
from worker.batch import Batch
from worker.core import Core
from worker.exchange import Outcome, Work
from worker.sequence import Sequence

WAIT_SECONDS = 0.2


@dataclass
class Mesh:
    """One pool, and as many workers on it as a test wants."""

    pool: Pool

    @property
    def store(self) -> Store:
        assert self.pool.store
        return self.pool.store

    def worker(
        self,
        name: str,
        *phases: Phase,
        budget: int = 16,
        engine: CountingEngine | None = None,
        cores: int = 0,
    ) -> Core:
        return Core(
            DirectStore(self.pool, name),
            engine or CountingEngine(100),
            Batch(budget),
            frozenset(phases),
            cores,
        )

    def announced(self) -> list[PrefillJob | DecodeJob]:
        names, self.store.announcements = (
            self.store.announcements,
            type(self.store.announcements)(),
        )
        return [r.next_job() for name in names if (r := self.store.parked(name))]


class Asked(DirectStore):
    """Remembers what it was asked."""

    def __init__(self, pool: Pool, peer: str) -> None:
        super().__init__(pool, peer)
        self.asked: list[str] = []

    def _exchange(self, operation: Operation) -> Answer:
        self.asked.append(operation.type)
        return super()._exchange(operation)


class Sharing(CountingEngine):
    """Remembers what it was told to compute on."""

    def __init__(self) -> None:
        super().__init__(100)
        self.parts: list[tuple[int, int]] = []

    def share(self, percent: int, num_peers: int) -> None:
        self.parts.append((percent, num_peers))


class Slow(CountingEngine):
    """Computes so many tokens in a second, of a clock of its own."""

    def __init__(self, tokens_per_second: int) -> None:
        super().__init__(100)
        self._tokens_per_second = tokens_per_second
        self.num_tokens: list[int] = []  # of each step

    def now(self) -> float:
        return sum(self.num_tokens) / self._tokens_per_second

    def step(self, chunks: Sequences[Chunk]) -> list[Drawn | None]:
        self.num_tokens.append(sum(len(chunk.token_ids) for chunk in chunks))
        return super().step(chunks)


class ByItself(CountingEngine):
    """Computes steps of at most so many tokens while nobody waits; writes down what it
    was asked."""

    def __init__(self, most: int = 100) -> None:
        super().__init__(100)
        self._most = most
        self.asked: list[str] = []

    def begin(self, chunks: Sequences[Chunk]) -> Ending | None:  # type: ignore[override]
        if sum(len(chunk.token_ids) for chunk in chunks) > self._most:
            return None
        self.asked.append("begin")

        def end() -> list[Drawn | None]:
            self.asked.append("end")
            return CountingEngine.step(self, chunks)

        return end

    def step(self, chunks: Sequences[Chunk]) -> list[Drawn | None]:
        self.asked.append("step")
        return super().step(chunks)


@pytest.fixture
def mesh() -> Iterator[Mesh]:
    pool = loaded_pool(20)
    yield Mesh(pool)
    pool.store.check()


def events(*outcomes: Outcome) -> list[TokenEvent]:
    return [event for outcome in outcomes for event in outcome.events.get("g1", [])]


def tokens(*outcomes: Outcome) -> list[int]:
    """The output as a gateway puts it together: only the next index counts."""
    output: list[int] = []
    for event in events(*outcomes):
        output.extend(event.token_ids[len(output) - event.index :])
    return output


def until_finished(core: Core, jobs: list[PrefillJob | DecodeJob]) -> list[Outcome]:
    outcomes, told = [core.round(Work(jobs))], list[Sequence]()
    while len(core.batch):
        outcomes.append(core.round(Work(told=told)))
        told = outcomes[-1].finished
    core.round(Work(told=outcomes[-1].finished))
    return outcomes


def test_prefill_samples_one_token_and_hands_off(mesh: Mesh) -> None:
    """
    A prefill worker's part ends with the first token: the rest is announced for decode.
    """
    prefill = mesh.worker("p", "prefill")

    outcome = prefill.round(Work([prefill_job(num_tokens=6)]))

    (event,) = events(outcome)
    assert (event.index, event.token_ids) == (0, (7,))
    assert len(prefill.batch) == 0
    assert isinstance(mesh.announced()[0], DecodeJob)


def test_decode_goes_on_to_the_end(mesh: Mesh) -> None:
    """
    The adopter generates from the second token to the last, and frees every block.
    """
    prefill, decode = mesh.worker("p", "prefill"), mesh.worker("d", "decode")
    first = prefill.round(Work([prefill_job(num_tokens=6, max_tokens=4)]))

    rest = until_finished(decode, mesh.announced())

    assert tokens(first, *rest) == [7, 8, 9, 10]
    assert events(*rest)[-1].finish_reason == "length"
    assert mesh.store.blocks.num_available == 20


def test_a_fused_worker_needs_no_handoff(mesh: Mesh) -> None:
    """
    A worker with both phases takes a request from its prompt to its end.
    """
    fused = mesh.worker("f", "prefill", "decode")

    outcomes = until_finished(fused, [prefill_job(max_tokens=4)])

    assert tokens(*outcomes) == [7, 8, 9, 10]
    assert mesh.announced() == []


def test_a_request_may_end_with_its_first_token(mesh: Mesh) -> None:
    """
    A request for one token never reaches decode.
    """
    prefill = mesh.worker("p", "prefill")

    outcomes = until_finished(prefill, [prefill_job(max_tokens=1)])

    assert events(*outcomes)[-1].finish_reason == "length"
    assert mesh.announced() == []
    assert mesh.store.blocks.num_available == 20


def test_another_worker_continues_after_a_death(mesh: Mesh) -> None:
    """
    When a decode worker dies, the next one goes on at the next token: same output.
    """
    prefill = mesh.worker("p", "prefill")
    doomed, heir = mesh.worker("d1", "decode"), mesh.worker("d2", "decode")
    first = prefill.round(Work([prefill_job(max_tokens=8)]))
    before = [doomed.round(Work(mesh.announced())), doomed.round(Work())]

    mesh.pool.detach("d1")
    after = until_finished(heir, mesh.announced())

    assert tokens(first, *before, *after) == [7, 8, 9, 10, 11, 12, 13, 14]


def test_words_go_out_while_the_next_step_is_under_way(mesh: Mesh) -> None:
    """
    With an engine that computes by itself a round ends with a step begun, and each step's
    token is told without waiting for another.
    """
    engine = ByItself()
    fused = mesh.worker("f", "prefill", "decode", engine=engine)

    first = fused.round(Work([prefill_job(max_tokens=3)]))
    second = fused.round(Work())

    assert (tokens(first), tokens(first, second)) == ([], [7])
    assert engine.asked == ["begin", "end", "begin"]
    assert tokens(first, second, fused.round(Work()), fused.round(Work())) == [7, 8, 9]
    assert engine.asked == ["begin", "end"] * 3


def test_a_step_that_is_not_begun_waits_until_others_are_told(mesh: Mesh) -> None:
    """
    A prompt that is too long for a step under way is computed a round later, when the
    token before it has gone out.
    """
    engine = ByItself(most=8)
    fused = mesh.worker("f", "prefill", "decode", engine=engine)
    fused.round(Work([prefill_job("r1", num_tokens=6)]))

    second = fused.round(Work([prefill_job("r2", num_tokens=9)]))
    third = fused.round(Work())

    assert engine.asked == ["begin", "end", "step"]
    assert [event.request_id for event in events(second)] == ["r1"]
    assert [event.request_id for event in events(third)] == ["r1", "r2"]


def test_a_drained_worker_ends_the_step_under_way(mesh: Mesh) -> None:
    """
    What that computed is recorded and told, and the next owner goes on behind it.
    """
    phases: tuple[Phase, ...] = ("prefill", "decode")
    fused, heir = (
        mesh.worker("f", *phases, engine=ByItself()),
        mesh.worker("h", *phases),
    )
    begun = fused.round(Work([prefill_job(num_tokens=6, max_tokens=4)]))

    drained = fused.drain(Work())
    (job,) = mesh.announced()
    rest = until_finished(heir, [job])

    assert tokens(begun, drained) == [7]
    assert job.generation == 1
    assert tokens(begun, drained, *rest) == [7, 8, 9, 10]


def test_a_sequence_lost_during_a_step_is_not_told(mesh: Mesh) -> None:
    """
    A client that hung up while a step was under way gets no token of it, and the next
    step is without it.
    """
    fused = mesh.worker("f", "prefill", "decode", engine=ByItself())
    fused.round(Work([prefill_job("r1"), prefill_job("r2")]))

    mesh.store.cancel("r1")
    second = fused.round(Work())

    assert [event.request_id for event in events(second)] == ["r2"]
    assert [each.request_id for each in fused.batch.running] == ["r2"]


def test_prompts_beside_streams_are_computed_in_shorter_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """
    Alone steps are whole. With somebody who decodes they are as long as the next prompt may
    wait, here a second of two cores at 300 tokens in each. By that rate two prompts of 400
    pile up behind another: then steps are whole again, and streams have the same part.
    """
    mesh, engine = Mesh(loaded_pool(600)), Slow(300)
    monkeypatch.setattr(time, "process_time", lambda: 2 * engine.now())
    mesh.pool.division.join("d", ("decode",))
    mesh.pool.division.join("p", ("prefill",))
    prefill = mesh.worker("p", "prefill", budget=512, engine=engine, cores=2)
    decode = mesh.worker("d", "decode")

    prefill.round(Work([prefill_job("r1", 512)]))
    decode.round(Work(mesh.announced()))
    prefill.round(Work([prefill_job("r2", 300)]))
    several: list[PrefillJob | DecodeJob] = [
        prefill_job(name, 400) for name in ("r3", "r4")
    ]
    prefill.round(Work(several))
    decode.round(Work())

    assert engine.num_tokens == [512, 256, 512]
    assert (prefill.percent, decode.percent) == (100, 100)


def test_what_is_computed_elsewhere_has_whole_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """
    A worker without cores, on a GPU, keeps no stream of others from computing.
    """
    mesh, engine = Mesh(loaded_pool(600)), Slow(600)
    monkeypatch.setattr(time, "process_time", engine.now)
    mesh.pool.division.join("d", ("decode",))
    mesh.pool.division.join("p", ("prefill",))
    prefill = mesh.worker("p", "prefill", budget=512, engine=engine)
    prefill.round(Work([prefill_job("r1", 512)]))
    mesh.worker("d", "decode").round(Work(mesh.announced()))

    prefill.round(Work([prefill_job("r2", 600)]))

    assert engine.num_tokens == [512, 512]


def test_a_step_that_needs_nothing_asks_nothing(mesh: Mesh) -> None:
    """
    The store is asked where a sequence begins, where it needs a block, and at its end.
    """
    store = Asked(mesh.pool, "f")
    phases = frozenset[Phase](("prefill", "decode"))
    fused = Core(store, CountingEngine(100), Batch(16), phases)

    with store.noting():
        outcomes = until_finished(fused, [prefill_job(num_tokens=6, max_tokens=10)])

    assert tokens(*outcomes) == list(range(7, 17))
    asked = ["admit", "advance", "advance", "advance", "advance", "release"]
    assert store.asked == asked  # its beginning, a call to that, and two more blocks


def test_a_noted_step_is_not_lost_with_its_worker(mesh: Mesh) -> None:
    """
    The heir goes on behind what the dead worker noted, and tells all of it.
    """
    store, heir = Asked(mesh.pool, "f"), mesh.worker("d", "decode")
    phases = frozenset[Phase](("prefill", "decode"))
    doomed = Core(store, CountingEngine(100), Batch(16), phases)
    with store.noting():
        doomed.round(Work([prefill_job(num_tokens=4, max_tokens=9)]))
        doomed.round(Work())
        doomed.round(Work())  # its words never reach anybody

        mesh.pool.detach("f")

    (job,) = mesh.announced()
    first = heir.round(Work([job]))
    assert store.asked == ["admit", "advance", "advance"]
    assert tokens(first) == [5, 6, 7, 8]


def test_what_is_cancelled_leaves_a_worker_that_asks_nothing(mesh: Mesh) -> None:
    """
    The store calls it, and after the next step it has no more of that sequence.
    """
    store = Asked(mesh.pool, "f")
    phases = frozenset[Phase](("prefill", "decode"))
    fused = Core(store, CountingEngine(100), Batch(16), phases)
    with store.noting():
        fused.round(Work([prefill_job("r1", num_tokens=4, max_tokens=9)]))
        fused.round(Work())

        mesh.store.cancel(RequestId("r1"))
        outcome = fused.round(Work())

    assert len(fused.batch) == 0
    assert not outcome.events
    assert mesh.store.blocks.num_available == 20


def test_tokens_that_were_recorded_and_never_told_are_told(mesh: Mesh) -> None:
    """
    A worker that died between the store and the gateway leaves no gap in the output.
    """
    prefill = mesh.worker("p", "prefill")
    doomed, heir = mesh.worker("d1", "decode"), mesh.worker("d2", "decode")
    first = prefill.round(Work([prefill_job(max_tokens=5)]))
    doomed.round(Work(mesh.announced()))  # its words never reach anybody

    mesh.pool.detach("d1")
    after = until_finished(heir, mesh.announced())

    assert tokens(first, *after) == [7, 8, 9, 10, 11]


def test_log_probabilities_survive_their_owner(mesh: Mesh) -> None:
    """
    Whoever goes on with a sequence tells how likely its tokens were from the first on.
    """
    doomed = mesh.worker("f", "prefill", "decode")
    heir = mesh.worker("d", "decode")
    job = prefill_job(max_tokens=5)
    asking = job.changed(sampling=job.sampling.changed(logprobs=True))
    doomed.round(Work([asking]))
    doomed.round(Work())

    mesh.pool.detach("f")
    first, *later = events(*until_finished(heir, mesh.announced()))

    assert (first.index, first.logprobs) == (0, (0.0,) * 3)
    assert [event.logprobs for event in later] == [(0.0,)] * 2


def test_an_end_that_was_never_told_is_told_by_the_heir(mesh: Mesh) -> None:
    """
    A sequence whose owner recorded its last token and died is ended by the next owner.
    """
    doomed = mesh.worker("f1", "prefill", "decode")
    heir = mesh.worker("f2", "decode")
    doomed.round(Work([prefill_job(max_tokens=1)]))

    mesh.pool.detach("f1")
    after = until_finished(heir, mesh.announced())

    assert tokens(*after) == [7]
    assert events(*after)[-1].finish_reason == "length"
    assert mesh.store.blocks.num_available == 20


def test_blocks_are_held_until_the_client_knows(mesh: Mesh) -> None:
    """
    A finished sequence is released only after its last event was published.
    """
    fused = mesh.worker("f", "prefill", "decode")
    outcome = fused.round(Work([prefill_job(max_tokens=1)]))
    before = mesh.store.blocks.num_referenced

    fused.round(Work(told=outcome.finished))

    assert before > 0
    assert mesh.store.blocks.num_referenced == 0


def test_a_cancelled_sequence_leaves_after_one_step(mesh: Mesh) -> None:
    """
    One step after a cancel the worker has dropped the sequence, and says no more of it.
    """
    fused = mesh.worker("f", "prefill", "decode")
    fused.round(
        Work([prefill_job("r1", max_tokens=9), prefill_job("r2", max_tokens=9)])
    )

    mesh.store.cancel(RequestId("r1"))
    outcome = fused.round(Work())

    assert [s.request_id for s in fused.batch.running] == ["r2"]
    assert {event.request_id for event in events(outcome)} == {"r2"}


def test_a_drained_worker_leaves_everything(mesh: Mesh) -> None:
    """
    A worker that stops parks what it computes and what it had only just read.
    """
    decode = mesh.worker("d", "decode")
    fused = mesh.worker("f", "prefill", "decode")
    first = fused.round(Work([prefill_job("r1", max_tokens=5)]))

    fused.drain(Work([prefill_job("r2", max_tokens=5)]))

    jobs = {job.request_id: job for job in mesh.announced()}
    assert isinstance(jobs[RequestId("r1")], DecodeJob)
    assert isinstance(jobs[RequestId("r2")], PrefillJob)
    rest = until_finished(decode, [jobs[RequestId("r1")]])
    assert tokens(first, *rest) == [7, 8, 9, 10, 11]


def test_a_job_past_its_deadline_is_not_computed(mesh: Mesh) -> None:
    """
    Nobody waits for an answer after the deadline, so nobody computes it.
    """
    fused = mesh.worker("f", "prefill", "decode")
    late = prefill_job(deadline=time.time() - 1)

    outcome = fused.round(Work([late]))

    assert not outcome.events
    assert mesh.store.blocks.num_available == 20


def test_a_dead_gateway_s_sequences_are_given_up(mesh: Mesh) -> None:
    """
    When a gateway is gone, so are the clients of its sequences: their blocks are free.
    """
    fused = mesh.worker("f", "prefill", "decode")
    fused.round(Work([prefill_job("r1", max_tokens=9)]))

    fused.round(Work(gone={"g1"}))

    assert len(fused.batch) == 0
    assert mesh.store.blocks.num_available == 20


@pytest.mark.parametrize("budget", [1, 3, 16])
def test_output_does_not_depend_on_the_budget(mesh: Mesh, budget: int) -> None:
    """
    However prompts are cut into chunks, each request gets the same tokens.
    """
    fused = mesh.worker("f", "prefill", "decode", budget=budget)
    jobs = [prefill_job(f"r{n}", num_tokens=n, max_tokens=3) for n in (2, 5, 9)]

    outcomes = until_finished(fused, list(jobs))

    for job in jobs:
        said = [e for e in events(*outcomes) if e.request_id == job.request_id]
        length = len(job.token_ids)
        output = [token for event in said for token in event.token_ids]
        assert output == [length + 1, length + 2, length + 3]


def test_engine_shares_the_machine_with_who_else_computes(mesh: Mesh) -> None:
    """
    A worker's engine hears of the others with each sequence it takes and each step.
    """
    engine = Sharing()
    first = mesh.worker("a", "prefill", "decode", engine=engine)
    second = mesh.worker("b", "prefill", "decode")

    first.round(Work([prefill_job("r1", num_tokens=6, max_tokens=9)]))
    second.round(Work([prefill_job("r2", num_tokens=6, max_tokens=9)]))
    first.round(Work())

    assert engine.parts == [(100, 1), (100, 1), (100, 2)]


def test_a_change_of_the_shares_is_in_force_one_step_later(mesh: Mesh) -> None:
    """
    While the other phase computes, the answer to each step says what the next may take.
    """
    engine = Sharing()
    decode = mesh.worker("d", "decode", engine=engine, cores=2)
    mesh.pool.division.join("d", ("decode",))
    mesh.pool.division.join("p", ("prefill",))
    mesh.worker("p", "prefill").round(Work([prefill_job("r1", 6, max_tokens=9)]))
    busy = mesh.worker("p", "prefill", budget=4)
    busy.round(Work([prefill_job("r2", num_tokens=12)]))
    decode.round(Work(mesh.announced()))
    rest_of_a_core = decode.rest_seconds

    mesh.pool.division.change(Shares(prefill=70, decode=30))
    decode.round(Work())

    assert engine.parts == [(50, 1), (50, 1), (30, 1)]
    assert decode.percent == 30
    assert decode.rest_seconds > rest_of_a_core == 0


def test_what_comes_while_a_step_waits_is_computed_in_it(mesh: Mesh) -> None:
    """
    Prompts that arrive while others have the cores are one step with the one that
    waits: what a step takes is decided when it begins.
    """
    fused = mesh.worker("f", "prefill", "decode")
    first, *newer = [prefill_job(f"r{n}", num_tokens=n) for n in (2, 3, 5)]

    outcome = fused.round(Work([first]), lambda: Work(newer))

    assert {event.request_id for event in events(outcome)} == {"r2", "r3", "r5"}
    assert outcome.num_jobs == 3


def test_a_step_that_waited_in_vain_computes_nothing(mesh: Mesh) -> None:
    """
    All of its clients may be gone when its turn comes.
    """
    fused = mesh.worker("f", "prefill", "decode")
    fused.round(Work([prefill_job("r1", max_tokens=9)]))

    outcome = fused.round(Work(), lambda: Work(gone={"g1"}))

    assert not outcome.events
    assert mesh.store.blocks.num_available == 20


def test_a_step_with_prompts_is_long(mesh: Mesh) -> None:
    """
    It computes on what is free and lets others go first; a step of streams does not.
    """

    class Asked(Sharing):
        def __init__(self) -> None:
            super().__init__()
            self.turns: list[bool] = []

        def turn(self, *, is_long: bool = False) -> AbstractContextManager[object]:
            self.turns.append(is_long)
            return super().turn(is_long=is_long)

    engine = Asked()
    fused = mesh.worker("f", "prefill", "decode", engine=engine)

    fused.round(Work([prefill_job("r1", 6, max_tokens=9)]))
    fused.round(Work())
    fused.round(Work([prefill_job("r2", 6, max_tokens=9)]))

    assert engine.turns == [True, False, True]


def test_waiting_for_a_core_asks_for_no_rest(mesh: Mesh) -> None:
    """
    A step that slept until it had a core took none meanwhile, for longer than its part, 20 %
    of two cores, asks of it.
    """

    class Waiting(Sharing):
        @contextmanager
        def turn(self, *, is_long: bool = False) -> Iterator[None]:
            time.sleep(WAIT_SECONDS)
            yield

    decode = mesh.worker("d", "decode", engine=Waiting(), cores=2)
    mesh.pool.division.join("d", ("decode",))
    mesh.pool.division.join("p", ("prefill",))
    mesh.pool.division.change(Shares(prefill=80, decode=20))
    mesh.worker("p", "prefill").round(Work([prefill_job("r1", 6, max_tokens=9)]))
    busy = mesh.worker("p", "prefill", budget=4)
    busy.round(Work([prefill_job("r2", num_tokens=12)]))

    decode.round(Work(mesh.announced()))

    assert decode.rest_seconds == 0
