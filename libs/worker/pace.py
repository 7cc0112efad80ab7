"""How many tokens of prompts a step computes beside streams, by how long steps take. Pure.

What 512 tokens take is a machine's and a model's: 0.2 or 2 seconds. Nobody who comes
meanwhile is computed before that step is over: so beside streams it is as long as the first
token of a short prompt may wait. Such steps cost a few percent of the rate of whole ones, as each
reads the weights; who has all of the machine has whole ones, alone or where prompts pile up.
"""

# Of the whole machine, for a step of who has a part of it: the less of both. With more
# tokens a step gains nothing.
TURN_SECONDS, TURN_TOKENS = 1.0, 1024
PILE_SECONDS, PILE_TOKENS = 1.2, 2560  # of prompts that pile up: the less of both
FEWEST_TOKENS = 128  # of a step; fewer take mostly what the weights take
GRAIN = 64  # tokens: kernels have whole tiles of rows
MEMORY = 0.8  # of all that was seen before, with each step


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
        """Of a step beside streams; as many as it may have until one was seen."""
        tokens = self._in(TURN_SECONDS, TURN_TOKENS)
        tiled = max(FEWEST_TOKENS, tokens - tokens % GRAIN)
        return min(self._step_tokens, tiled)

    @property
    def pile_tokens(self) -> int:
        """Of prompts that wait, from which on they need the whole of the machine."""
        return self._in(PILE_SECONDS, PILE_TOKENS)

    def _in(self, seconds: float, most: int) -> int:
        """Tokens that are computed in that time."""
        if not self._seconds:
            return most
        return min(most, int(seconds * self._tokens / self._seconds))
