"""An engine computes on the bytes that it was given, wherever stand-ins come between."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

Fixture = Callable[..., Any]


def place(memory: memoryview) -> range:
    start = np.frombuffer(memory, np.uint8).ctypes.data
    return range(start, start + len(memory))


def strangers(memory: Any) -> list[str]:
    """What of an engine over this memory lies somewhere else."""
    places = memory.engine().places
    blocks, weights = places.pop("blocks"), place(memory.weights)
    assert blocks == place(memory.blocks)
    assert places, "a model has weights"
    return [
        name
        for name, each in places.items()
        if each[0] not in weights or each[-1] not in weights
    ]


@pytest.mark.parametrize("name", ["llama-tied", "qwen2", "qwen3-moe", "gemma2"])
def test_every_weight_is_used_where_it_lies(
    family: Fixture, memory_of: Fixture, name: str
) -> None:
    """
    No family's weights are copied, also where other modules stand in for its own.
    """
    assert strangers(memory_of(family(name), "bfloat16")) == []


@pytest.mark.parametrize("kind", [("float32", "none"), ("bfloat16", "int8")], ids=str)
def test_nor_are_they_in_other_arithmetic(
    family: Fixture, memory_of: Fixture, kind: tuple[str, str]
) -> None:
    """
    The same in float32 and in int8.
    """
    assert strangers(memory_of(family("llama"), *kind)) == []
