"""A model bound to memory: nothing copied, nothing missing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.configuration import read_configuration
from engine.errors import UnsupportedModel
from engine.skeleton import bind, skeleton, state, views

Fixture = Callable[..., Any]


def test_bound_tensors_lie_in_the_given_memory(
    each_family: Path, memory_of: Fixture
) -> None:
    """Every parameter and buffer is a view of the weights, and none is on `meta`."""
    memory = memory_of(each_family)
    model = skeleton(read_configuration(each_family), torch.float32)

    bind(model, views(memory.weights, memory.checkpoint.tensors))

    whole = torch.frombuffer(memory.writable, dtype=torch.uint8)
    first, last = whole.data_ptr(), whole.data_ptr() + whole.numel()
    tensors = state(model)
    assert tensors
    assert all(first <= tensor.data_ptr() < last for tensor in tensors.values())


def test_skeleton_takes_no_memory(stories: Path) -> None:
    """Before it is bound, a model is shapes only."""
    model = skeleton(read_configuration(stories), torch.float32)

    assert all(tensor.is_meta for tensor in state(model).values())


def test_missing_tensor_is_named(stories: Path, memory_of: Fixture) -> None:
    """Weights of another model are refused with the first name that they lack."""
    memory = memory_of(stories)
    specs = [s for s in memory.checkpoint.tensors if "norm" not in s.name]
    model = skeleton(read_configuration(stories), torch.float32)

    with pytest.raises(UnsupportedModel, match=r"have no model\..*norm"):
        bind(model, views(memory.weights, specs))


def test_tensor_outside_parameters_is_refused(
    stories: Path, memory_of: Fixture
) -> None:
    """A tensor that no name reaches would stay on `meta` and fail in the first step."""
    memory = memory_of(stories)
    model = skeleton(read_configuration(stories), torch.float32)
    model.model.table = torch.empty(3, device="meta")

    with pytest.raises(UnsupportedModel, match=r"model\.table is neither"):
        bind(model, views(memory.weights, memory.checkpoint.tensors))
