"""One request on its way through a pool."""

from bench.measures import Outcome
from bench.workload import Planned


class Sequence:
    """Its lengths, what is computed of it, and when its tokens came."""

    __slots__ = (
        "max_tokens",
        "num_computed",
        "num_input",
        "num_prompt",
        "number",
        "sent",
        "times",
    )

    def __init__(self, planned: Planned, number: int, sent: float) -> None:
        self.number = number  # in order of arrival
        self.sent = sent
        self.num_input = len(planned.prompt)
        self.max_tokens = planned.max_tokens
        self.times: list[float] = []
        self.num_prompt = self.num_input  # to be computed before the next token
        self.num_computed = 0

    @property
    def most(self) -> int:
        """Tokens that it can come to hold."""
        return self.num_input + self.max_tokens

    @property
    def num_remaining(self) -> int:
        return self.max_tokens - len(self.times)

    def forget(self) -> None:
        """It was preempted: prompt and answer so far are a prompt again."""
        self.num_prompt = self.num_input + len(self.times)
        self.num_computed = 0

    def outcome(self, error: str = "") -> Outcome:
        return Outcome(
            sent=self.sent,
            times=tuple(self.times),
            num_prompt_tokens=self.num_input,
            num_output_tokens=len(self.times),
            error=error,
        )
