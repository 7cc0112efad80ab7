"""How many tokens of prompts a step computes beside streams, by how long steps take. Pure.

Where phases share cores a stream waits for a prompt's step now and then. What 512 tokens
take is a machine's and a model's: 0.2 or 2 seconds. So steps beside streams are as long
as a stream may wait. They cost a few percent of the rate of whole ones, as each step reads
the weights; where so much waits that the rate counts most, steps are whole.
"""

TURN_SECONDS = 0.5  # on the whole of the machine, beside streams
PILE_SECONDS, PILE_TOKENS = 1.5, 3072  # of prompts that pile up: the less of both
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
        tokens = self._in(TURN_SECONDS, self._step_tokens)
        tiled = max(FEWEST_TOKENS, tokens - tokens % GRAIN)
        return min(self._step_tokens, tiled)

    @property
    def pile_tokens(self) -> int:
        """Of prompts that wait, from which on they need the whole of the machine."""
        return self._in(PILE_SECONDS, PILE_TOKENS)

    def budget(self, num_missing_tokens: int, *, is_beside: bool) -> int:
        """Of the next step, where prompts miss so many, and others decode or not."""
        is_long = num_missing_tokens >= LONG_PILE * self._step_tokens
        return self.turn_tokens if is_beside and not is_long else self._step_tokens

    def _in(self, seconds: float, most: int) -> int:
        """Tokens that are computed in that time."""
        if not self._seconds:
            return most
        return min(most, int(seconds * self._tokens / self._seconds))
