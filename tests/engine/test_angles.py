"""What depends on positions alone is looked up, and is the same to the bit."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.angles import Angles
from engine.operations import Kind
from engine.recorder import Native, Operation, Recorder
from engine.sizes import Sizes

RECORDED = Sizes(tokens=7, sampled=5)
FREQUENCIES = torch.linspace(1.0, 0.01, 8)

Function = Callable[[Tensor, Tensor], Tensor]


def of_positions(positions: Tensor, _: Tensor) -> Tensor:
    turns = positions.unsqueeze(2).to(torch.float32) * FREQUENCIES
    return torch.cat((turns, turns), -1).cos().to(torch.bfloat16)


def of_the_token(positions: Tensor, token_ids: Tensor) -> Tensor:
    turns = token_ids.unsqueeze(2).to(torch.float32) * FREQUENCIES
    return (turns * positions.unsqueeze(2)).to(torch.bfloat16)


def of_some_more(positions: Tensor, token_ids: Tensor) -> Tensor:
    """The first operation knows positions only, and the next one reads what it says."""
    turns = positions.unsqueeze(2) * token_ids.unsqueeze(2)
    return (turns.to(torch.float32) * FREQUENCIES).to(torch.bfloat16)


def of_all_positions(positions: Tensor, _: Tensor) -> Tensor:
    sums = positions.cumsum(1).unsqueeze(2)
    return (sums.to(torch.float32) * FREQUENCIES).to(torch.bfloat16)


def recorded(function: Function) -> Angles:
    """With an operation behind it that reads the answer into memory."""
    positions, token_ids = torch.arange(7).unsqueeze(0), torch.arange(7).unsqueeze(0)
    recorder = Recorder()
    with torch.inference_mode(), recorder.recording() as operations:
        answer = function(positions, token_ids)
    return Angles(positions, [token_ids], [*operations, _read(answer)], RECORDED)


def _read(tensor: Tensor) -> Operation:
    return Native(Kind.ADD, 7, (tensor, tensor, torch.empty_like(tensor)), (16,))


@pytest.mark.parametrize("positions", [[0], [3, 2047, 3], [2048], [70_001, 5]])
def test_angles_are_looked_up(positions: list[int]) -> None:
    """
    For any number of tokens, however far they are.
    """
    angles = recorded(of_positions)
    place = torch.zeros(1, len(positions), 16, dtype=torch.bfloat16)

    angles.look_up(np.array(positions), [place])

    expected = of_positions(torch.tensor([positions]), torch.zeros(0))
    assert torch.equal(place, expected)


@pytest.mark.parametrize("function", [of_the_token, of_some_more, of_all_positions])
def test_what_knows_more_is_computed(function: Function) -> None:
    """
    What reads another input, or what one token has of the others, is in no table.
    """
    angles = recorded(function)

    assert angles.answers == []
    assert angles.operations == []
