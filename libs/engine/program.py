"""The operations of a step as numbers, and the kernel that runs them all.

One call for a whole step: no Python between two operations, and no thread that waits
for another to be woken. Threads take tasks one at a time, so one that is kept from its
core delays a step by a task at most: who waits for it does that one, too (`engine.task`).
And they go on to the next operation while others are still at this one, if it does not
need what they compute. What has been computed is counted in the program: so a run may
stop between two tasks and go on later, on more threads or fewer.
"""

from typing import Any, NamedTuple, Protocol

import numpy as np
from numba import get_num_threads, prange

from engine.atomics import current, fetch_add, relax, sched_yield
from engine.compiled import compiled, inlined
from engine.operations import (
    NUM_CONSTANTS,
    NUM_NUMBERS,
    TWICE,
    Part,
    addresses,
    call,
    num_rows,
    num_tasks,
)
from engine.place import NOWHERE, NUM_PLACE_NUMBERS, Place, describe
from engine.task import Task, alone, is_put
from engine.watch import NEVER, Watch, is_over

Array = Any
MANY_TASKS = 128  # more than that are taken several at a time
# Turns of a waiting loop, for each eight tokens of a step. No task takes that long: its
# thread was taken off its core.
HELP_AFTER = 500
TOKENS_AT_ONCE = 8
PATIENCE = 2000  # then it lets others use the core
MANY_THREADS = 1 << 20  # for which operations are cut into as many tasks as can be


class Program(NamedTuple):
    """Operations in order; their tasks may be done side by side."""

    kinds: Array  # [n] int64
    units: Array  # [n] int64
    rows: Array  # [n] int64: how many of each unit
    after: Array  # [n] int64: the last operation that has to be done before; or -1
    numbers: Array  # [n, NUM_NUMBERS] int64
    constants: Array  # [n, NUM_CONSTANTS] float64
    begun: Array  # [n] int64: tasks taken, by whomever
    done: Array  # [n] int64
    # Of tasks that may be done twice: in which run they were last put.
    claims: Array  # int64, of one operation after the other
    first_claims: Array  # [n] int64: where those of an operation start; -1: it has none
    num_runs: Array  # [1] int64
    families: Array  # [len(Kind)] int64: where each kind's machine code is
    place: Array  # [NUM_PLACE_NUMBERS] int64: that of the run


def program_of(count: int, families: Array | None = None) -> Program:
    """Room for so many operations, each after the one before, and nobody helps.

    Without the addresses of `families` these are compiled, if they are not yet.
    """
    kinds, units, rows, begun, done = (np.zeros(count, np.int64) for _ in range(5))
    return Program(
        kinds,
        units,
        rows,
        np.arange(count) - 1,
        np.zeros((count, NUM_NUMBERS), np.int64),
        np.zeros((count, NUM_CONSTANTS), np.float64),
        begun,
        done,
        np.zeros(0, np.int64),
        np.full(count, -1),
        np.zeros(1, np.int64),
        addresses() if families is None else families,
        np.zeros(NUM_PLACE_NUMBERS, np.int64),
    )


def with_claims(program: Program, tokens: int, sampled: int) -> Program:
    """For steps of at most so many tokens: threads help with each other's tasks."""
    largest = NOWHERE._replace(
        token_ids=np.zeros(tokens, np.int64),
        last_rows=np.zeros(sampled, np.int64),
        tiles=np.zeros((tokens, 0), np.int64),
        sampled_tiles=np.zeros((sampled, 0), np.int64),
        num_threads=MANY_THREADS,
    )
    counts = _num_claims(program, largest)
    ends = np.cumsum(counts)
    return program._replace(
        claims=np.zeros(counts.sum(), np.int64),
        first_claims=np.where(counts, ends - counts, -1),
    )


@compiled()
def _num_claims(program: Program, place: Place) -> Array:
    """Tasks of each operation that two may do; their answers are put at once."""
    counts = np.zeros(len(program.kinds), np.int64)
    for operation in range(len(counts)):
        if program.kinds[operation] in TWICE:
            counts[operation] = _num_tasks(program, place, operation)
    return counts


class Pauses(Protocol):
    """When a run stops, and what is done until it goes on."""

    @property
    def watch(self) -> Watch: ...

    def pause(self) -> None: ...


def run(program: Program, place: Place, pauses: Pauses | None = None) -> None:
    """All operations, each after what it needs, on the threads that numba has then."""
    watch = pauses.watch if pauses else NEVER
    is_done = go_on(program, place, watch, get_num_threads(), True)
    while pauses and not is_done:
        pauses.pause()
        is_done = go_on(program, place, pauses.watch, get_num_threads(), False)


@compiled(parallel=True, nogil=True)
def go_on(
    program: Program, place: Place, watch: Watch, num_threads: int, is_new: bool
) -> bool:
    """Compute until all is done, or the watch is over; whether all is."""
    if is_new:
        program.begun[:] = 0
        program.done[:] = 0
        program.num_runs[0] += 1
        describe(place, program.place)
    for _ in prange(num_threads):
        cleared = -1  # the last operation that is known to be done, as all before it
        operation = 0
        while operation < program.kinds.shape[0] and not is_over(watch):
            mine, again = operation, cleared < program.after[operation]
            if again:
                mine = cleared + 1
                if _is_done(program, place, watch, mine):
                    cleared = mine
                    continue
            _take_part(program, place, watch, mine, again)
            if again:
                sched_yield()
            else:
                operation += 1
    # A thread stops only when it has put what it took.
    for operation in range(program.kinds.shape[0]):
        if program.done[operation] < _num_tasks(program, place, operation):
            return False
    return True


@inlined
def _is_done(program: Program, place: Place, watch: Watch, operation: int) -> bool:
    """Wait until it is; False if it takes long, and can be helped with, or the watch
    is over."""
    total = _num_tasks(program, place, operation)
    patience = HELP_AFTER * (1 + len(place.token_ids) // TOKENS_AT_ONCE)
    turns = 0
    while current(program.done, operation) < total:
        turns += 1
        if turns == patience and program.first_claims[operation] >= 0:
            return False
        if is_over(watch):
            return False
        if turns < PATIENCE:
            relax()
        else:
            sched_yield()
    return True


@inlined
def _take_part(
    program: Program, place: Place, watch: Watch, operation: int, again: bool
) -> None:
    """Do tasks of an operation while there are some that nobody has taken.

    Or, `again`, those that others have taken and not put yet.
    """
    total = _num_tasks(program, place, operation)
    rows = _num_rows(program, place, operation)
    at_once = total if again else total // MANY_TASKS + 1
    first = 0
    while first < total and (again or current(program.begun, operation) < total):
        if is_over(watch):
            break
        first = 0 if again else fetch_add(program.begun, operation, at_once)
        end = min(first + at_once, total)
        num_put = 0
        for number in range(first, end):
            task = _task(program, operation, number)
            if not is_put(task) and _do(program, operation, rows, task):
                num_put += 1
        fetch_add(program.done, operation, num_put)
        if again:
            break


@inlined
def _num_rows(program: Program, place: Place, operation: int) -> int:
    return num_rows(program.units[operation], program.rows[operation], place)


@inlined
def _num_tasks(program: Program, place: Place, operation: int) -> int:
    kind, unit = program.kinds[operation], program.units[operation]
    rows = _num_rows(program, place, operation)
    return num_tasks(kind, unit, rows, program.numbers[operation], place)


@inlined
def _do(program: Program, operation: int, rows: int, task: Task) -> bool:
    """One task, of so many rows; False if another thread was faster."""
    kind, step = program.kinds[operation], operation * program.numbers.itemsize
    part = Part(
        kind,
        program.units[operation],
        rows,
        program.numbers.ctypes.data + step * NUM_NUMBERS,
        program.constants.ctypes.data + step * NUM_CONSTANTS,
        program.place.ctypes.data,
        task.number,
        task.claim,
        task.run,
    )
    return call(program.families[kind], part) != 0


@inlined
def _task(program: Program, operation: int, number: int) -> Task:
    first = program.first_claims[operation]
    if first < 0:
        return alone(number)
    address = program.claims.ctypes.data + (first + number) * program.claims.itemsize
    return Task(number, address, program.num_runs[0])
