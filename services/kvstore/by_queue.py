"""Shares that follow the queue, where nobody has set any. Pure: a queue in, shares out.

With halves both phases go on side by side, and streams wait for no prompt. But prompts have
half of the machine then. When they pile up, few sequences decode, and a step for four takes
nearly as long as one for sixteen. So while prompts pile up both phases may have everything,
and steps take turns: prompts twice as fast, streams a step for each of theirs. That may be for
long where very many wait: then streams have a tenth, and steps of prompts pause for them.

What piles up is all but the longest prompt: short ones go before it, and it is no pile by itself.
How many tokens are one says who computes them (`worker.pace`): a large model on a slow
machine has one with a quarter of the tokens.
"""

from collections.abc import Collection

from protocol.messages import Shares

HALVES = Shares(prefill=50, decode=50)
WHOLE = Shares(prefill=100, decode=100)  # for both: they compete
PROMPTS_FIRST = Shares(prefill=100, decode=10)

MANY = 3  # prompts, and as many tokens as are a pile: both, and they pile up
LONG = 2  # piles
PILE_TOKENS = 2560  # until a worker says how many


class ByQueue:
    """A pile is one until it is drained, so a queue that wavers changes nothing."""

    def __init__(self) -> None:
        self._piles = 0.0  # the most since prompts began to pile up
        self._pile_tokens = PILE_TOKENS

    @property
    def shares(self) -> Shares:
        if self._piles < 1:
            return HALVES
        return WHOLE if self._piles < LONG else PROMPTS_FIRST

    def see(self, missing: Collection[int], pile_tokens: int = 0) -> None:
        """Of each prompt that waits or is computed, the tokens that it still needs.

        Of all but the longest `pile_tokens` are a pile; 0: as many as before.
        """
        self._pile_tokens = pile_tokens or self._pile_tokens
        if not missing:
            self._piles = 0.0
        elif len(missing) >= MANY:
            waiting = sum(missing) - max(missing)
            self._piles = max(self._piles, waiting / self._pile_tokens)
