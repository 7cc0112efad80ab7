"""Parts of an operation, which two threads may both compute and one puts in their place.

A thread that the system takes off its core in the middle of a task would keep all others
waiting. So who waits computes the task again, into memory of its own; whoever is first
with it claims it and writes the answer, and the other's is dropped. What the late one
reads meanwhile may be other data already: it is not written anywhere.
"""

from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from engine.compiled import compiled


class Task(NamedTuple):
    """One part of an operation."""

    number: int
    claim: int  # address of the run in which it was put last, int64; 0: nobody competes
    run: int


@compiled()
def alone(number: int) -> Task:
    """A task that nobody else computes."""
    return Task(number, 0, 0)


@compiled(forceinline=True)
def claims(task: Task) -> bool:
    """Whether the caller is the first with it, and has to put it."""
    return task.claim == 0 or _swap(task.claim, task.run) != task.run


@compiled(forceinline=True)
def is_put(task: Task) -> bool:
    """Whether somebody has put it already, or is about to."""
    return task.claim != 0 and _value(task.claim) == task.run


@intrinsic
def _value(typing: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.load_atomic(pointer, "acquire", 8)

    return types.int64(types.int64), generate


@intrinsic
def _swap(typing: Any, address: Any, value: Any) -> Any:
    """Put a value; the answer is what was there, and nobody else's."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("xchg", pointer, arguments[1], "seq_cst")

    return types.int64(types.int64, types.int64), generate
