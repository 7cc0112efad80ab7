"""The continuous batch: who computes what in this step. Knows no store and no Redis."""

from collections.abc import Iterable

from engine.interface import Chunk
from protocol.messages import RequestId
from worker.sequence import Sequence

OLDEST_PART = 2  # a half of each step is the oldest prompt's


class Batch:
    """The sequences that this worker holds, in order of arrival."""

    def __init__(self, max_num_batched_tokens: int) -> None:
        self.max_num_batched_tokens = max_num_batched_tokens
        self._running: dict[RequestId, Sequence] = {}

    def __len__(self) -> int:
        return len(self._running)

    @property
    def running(self) -> list[Sequence]:
        return list(self._running.values())

    @property
    def has_prompts(self) -> bool:
        """Whether the next step computes some."""
        return not all(sequence.is_decoding for sequence in self._running.values())

    def join(self, sequence: Sequence) -> None:
        self._running[sequence.request_id] = sequence

    def leave(self, request_id: RequestId) -> None:
        self._running.pop(request_id, None)

    def holds(self, sequence: Sequence) -> bool:
        return self._running.get(sequence.request_id) is sequence

    def get(self, request_id: RequestId) -> Sequence | None:
        return self._running.get(request_id)

    def schedule(self, budget: int) -> list[tuple[Sequence, Chunk]]:
        """The next step, of so many tokens: one for everyone who decodes, then prompts.

        Decoding sequences always go: each costs one token and somebody reads along. What
        is left of the budget goes to prompts, the last of them perhaps in part (chunked
        prefill, Sarathi-Serve 2403.02310): a half to the oldest, so that none waits for
        ever, and the other to those that are done soonest, which need not wait for it.
        """
        decoding, prompts = list[Sequence](), list[Sequence]()
        for sequence in self._running.values():
            (decoding if sequence.is_decoding else prompts).append(sequence)
        scheduled = [(sequence, sequence.chunk(1)) for sequence in decoding]
        for sequence, num_tokens in _divided(budget - len(scheduled), prompts):
            scheduled.append((sequence, sequence.chunk(num_tokens)))
        return scheduled


def _divided(budget: int, prompts: list[Sequence]) -> Iterable[tuple[Sequence, int]]:
    """Prompts in order of arrival, each with its tokens of the step, if it has some."""
    if budget <= 0 or not prompts:
        return
    left = {sequence.request_id: sequence.num_missing_tokens for sequence in prompts}
    oldest = prompts[0].request_id
    tokens = {oldest: min(left[oldest], -(-budget // OLDEST_PART))}
    budget -= tokens[oldest]
    for request_id in sorted(left, key=left.__getitem__):
        taken = min(left[request_id] - tokens.get(request_id, 0), budget)
        tokens[request_id] = tokens.get(request_id, 0) + taken
        budget -= taken
    for sequence in prompts:
        if tokens[sequence.request_id]:
            yield sequence, tokens[sequence.request_id]
