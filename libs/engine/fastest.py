"""Which of several ways to make the same calls takes the least time on the current stream.

The stream may have a part of the GPU only; on that it is measured. What is called is not
known here.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

_REPLAYS = 5
_MARGIN = 0.99  # of torch's time: what differs by less may be noise

Way = TypeVar("Way")


def fastest(
    acts: Sequence[Callable[[Way | None], object]], ways: Sequence[Way]
) -> Way | None:
    """The way in which these calls take the least time; None where torch's do.

    Each call is one product in that way, by torch for None: of one shape, over the
    weights of different layers, so that none are in the cache. Without a GPU it is the
    first way.
    """
    if not ways or not torch.cuda.is_available():
        return next(iter(ways), None)
    times = {way: seconds(acts, way) for way in ways}
    best = min(ways, key=times.__getitem__)
    return best if times[best] < _MARGIN * seconds(acts, None) else None


def seconds(acts: Sequence[Callable[[Way | None], object]], way: Way | None) -> float:
    """Of one of these calls, when a CUDA graph makes them all: the least of a few."""
    stream = torch.cuda.current_stream()
    is_default = stream == torch.cuda.default_stream()  # which cannot be captured
    for act in acts:
        act(way)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=None if is_default else stream):
        for act in acts:
            act(way)
    graph.replay()
    return min(_replay_seconds(graph) for _ in range(_REPLAYS)) / len(acts)


def _replay_seconds(graph: torch.cuda.CUDAGraph) -> float:
    start, end = (
        torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        for _ in range(2)
    )
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3
