"""How many tokens of prompts a step computes beside streams, by how long steps take. Pure.

Where phases share cores a stream waits for a prompt's step now and then. What 512 tokens
take is a machine's and a model's: 0.2 or 2 seconds. So steps beside streams are as long
as a stream may wait. They cost a few percent of the rate of whole ones, as each step reads
the weights; where so much waits that the rate counts most, steps are whole.
"""

TURN_SECONDS = 0.25  # on the whole of the machine, beside streams
FEWEST_TOKENS = 128  # of a step; fewer take mostly what the weights take
GRAIN = 64  # tokens: kernels have whole tiles of rows
MEMORY = 0.8  # of all that was seen before, with each step
LONG_PILE = 8  # whole steps


class Pace:
    """Of the prompts of one worker."""

    def __init__(self, step_tokens: int) -> None:
        """`step_tokens` are those of a whole step."""
        self._step_tokens = step_tokens
        self._tokens = self._seconds = 0.0  # of the latest steps, fading

    def see(self, num_tokens: int, seconds: float) -> None:
        """A step of so many tokens would have had the whole of the machine for so long."""
        if num_tokens < min(FEWEST_TOKENS, self._step_tokens):
            return
        self._tokens = MEMORY * self._tokens + num_tokens
        self._seconds = MEMORY * self._seconds + seconds

    @property
    def turn_tokens(self) -> int:
        """Of a step beside streams; whole ones until one was seen."""
        if not self._seconds:
            return self._step_tokens
        tokens = int(TURN_SECONDS * self._tokens / self._seconds)
        return min(self._step_tokens, max(FEWEST_TOKENS, tokens - tokens % GRAIN))

    def budget(self, num_missing_tokens: int, *, is_beside: bool) -> int:
        """Of the next step, where prompts miss so many, and others decode or not."""
        is_long = num_missing_tokens >= LONG_PILE * self._step_tokens
        return self.turn_tokens if is_beside and not is_long else self._step_tokens
