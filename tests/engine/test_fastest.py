"""Which of several ways is taken."""

import pytest
import torch
from triton_device import DEVICE

from engine.fastest import fastest


@pytest.mark.skipif(DEVICE == "cuda", reason="there it is what is measured")
def test_without_a_gpu_nothing_is_measured() -> None:
    """The first way is taken, and torch's where there is none to take."""
    assert fastest([], [3, 4]) == 3
    assert fastest([], list[int]()) is None


@pytest.mark.skipif(DEVICE == "cpu", reason="it measures")
@pytest.mark.parametrize("is_lane", [False, True])
def test_the_faster_one_is_found(is_lane: bool) -> None:
    """Of reading memory once, twice and three times: on torch's stream and another."""
    memory = torch.zeros(10**8, device=DEVICE)
    stream = torch.cuda.Stream() if is_lane else torch.cuda.default_stream()

    def act(times: int | None) -> None:
        for _ in range(times or 3):
            memory.add_(1)

    with torch.cuda.stream(stream):
        assert fastest([act] * 4, [2, 1]) == 1
        assert fastest([act] * 4, [4, 5]) is None
